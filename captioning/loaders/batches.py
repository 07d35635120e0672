"""Records and a vocabulary -> batches, in an order that is a function of (seed, epoch). Knows no model."""

from __future__ import annotations

import gc
import io
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioning.errors import UserError
from captioning.images.augmentation import AugmentationConfig, augment
from captioning.images.preprocessing import Preprocessing, normalize, preprocess_uint8
from captioning.images.reading import load_image
from captioning.loaders.feature_store import FeatureStore
from captioning.models.encoders.region_files import RegionFiles, pad_regions
from captioning.records import ImageId, ImageRecord
from captioning.tensors import Batch, Features
from captioning.text.tokenizer import tokenize
from captioning.text.vocabulary import Vocabulary
from captioning.utils.file_slice import read_bytes
from captioning.utils.packed_strings import PackedStrings

POOL = 32
"""Batches that are sorted by caption length together: enough to find images alike, few enough to stay random."""


class EncodedCaptions(NamedTuple):
    """All captions of some records in three arrays: nothing for worker processes to copy.

    Image i has the captions `first[i] .. first[i + 1] - 1`; caption j the ids `words[start[j] : start[j + 1]]`.
    """

    words: np.ndarray  # int32
    start: np.ndarray  # int64
    first: np.ndarray  # int64
    cut: int  # captions longer than the limit

    @classmethod
    def of(
        cls, records: Sequence[ImageRecord], vocabulary: Vocabulary, *, max_length: int
    ) -> EncodedCaptions:
        """`<start> words <end>` of every caption, at most `max_length` words each."""
        words, start, first, cut = array("i"), array("q", [0]), array("q", [0]), 0
        for record in records:
            for caption in record.captions:
                ids = vocabulary.encode(tokenize(caption), max_length=max_length)
                cut += ids[-1] != vocabulary.end
                words.extend(ids)
                start.append(len(words))
            first.append(len(start) - 1)
        return cls(
            words=np.frombuffer(words, np.int32) if words else np.zeros(0, np.int32),
            start=np.frombuffer(start, np.int64),
            first=np.frombuffer(first, np.int64),
            cut=cut,
        )

    def numbers_of(self, image: int, width: int, generator: np.random.Generator) -> np.ndarray:
        """Numbers of at most `width` captions of an image, drawn without replacement, longest first."""
        captions = np.arange(self.first[image], self.first[image + 1])
        if len(captions) > width:
            captions = generator.choice(captions, width, replace=False)
        lengths = self.start[captions + 1] - self.start[captions]
        return captions[np.argsort(-lengths, kind="stable")]

    def of_image(self, image: int, width: int, generator: np.random.Generator) -> list[np.ndarray]:
        """The captions of these numbers."""
        return [self.ids_of(caption) for caption in self.numbers_of(image, width, generator)]

    def ids_of(self, caption: int) -> np.ndarray:
        return self.words[self.start[caption] : self.start[caption + 1]]


def bucketed_batches(captions: EncodedCaptions, *, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch, each an array of `size` image numbers (the last may be smaller).

    Shuffled; then, within pools of `POOL` batches, images with captions of like length are put together, so
    that few sequences wait for the longest; then the batches are shuffled. A function of its arguments only.
    """

    def cut(pool: np.ndarray) -> list[np.ndarray]:
        return [pool[i : i + size] for i in range(0, len(pool), size)]

    return _order(captions, size, cut, seed=seed, epoch=epoch)


def token_batches(
    captions: EncodedCaptions, *, tokens: int, width: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """As `bucketed_batches`, with as many images a batch as `tokens` allows: short captions come in larger batches.

    An image takes `width` captions times the words (and `<end>`) of the longest that stands in the batch, padding
    counted; a batch takes at most `tokens`, but for an image that alone takes more.
    """
    longest = _longest(captions) - 1  # `<start>` is not said

    def cut(pool: np.ndarray) -> list[np.ndarray]:
        begins, begin = [], 0
        for at, length in enumerate(longest[pool].tolist()):  # ascending
            if at > begin and (at - begin + 1) * width * length > tokens:
                begins.append(at)
                begin = at
        return np.split(pool, begins)

    usual = max(1, int(tokens / (width * longest.mean())))
    return _order(captions, usual, cut, seed=seed, epoch=epoch)


def _order(
    captions: EncodedCaptions,
    size: int,
    cut: Callable[[np.ndarray], list[np.ndarray]],
    *,
    seed: int,
    epoch: int,
) -> list[np.ndarray]:
    """`cut` makes batches, usually of `size` images, of a pool that is sorted by length."""
    generator = np.random.default_rng((seed, epoch, 0))
    longest = _longest(captions)
    shuffled = generator.permutation(len(longest))
    batches: list[np.ndarray] = []
    for begin in range(0, len(longest), size * POOL):
        pool = shuffled[begin : begin + size * POOL]
        batches += cut(pool[np.argsort(longest[pool], kind="stable")])
    return [batches[i] for i in generator.permutation(len(batches))]


def _longest(captions: EncodedCaptions) -> np.ndarray:
    """(images,) ids of each image's longest caption."""
    return np.maximum.reduceat(np.diff(captions.start), captions.first[:-1])


def pack(
    chosen: Sequence[Sequence[np.ndarray]], *, width: int, pad: int
) -> tuple[Tensor, tuple[int, ...], int]:
    """Captions of each image, longest first -> words (B, width, T + 1), running, tokens, as `Batch` has them."""
    length = max(len(ids) for captions in chosen for ids in captions)
    words = np.full((len(chosen), width, length), pad, np.int64)
    counts = np.zeros((len(chosen), length - 1), np.int64)  # captions of an image with more than t targets
    tokens = 0
    for b, captions in enumerate(chosen):
        for k, ids in enumerate(captions):
            words[b, k, : len(ids)] = ids
            counts[b, : len(ids) - 1] += 1
            tokens += len(ids) - 1
    return torch.from_numpy(words), tuple(int(count) for count in counts.max(0)), tokens


Images = Callable[[Sequence[int] | np.ndarray, int], Features | Tensor]
"""(image numbers, epoch) -> stored features, or pixels (B, 3, height, width)."""


_SIDES = re.compile(r"\b(left|right)(most|-?hand(ed)?)?\b", re.IGNORECASE)


def mentions_left_right(records: Iterable[ImageRecord]) -> np.ndarray:
    """(images,) bool: a caption says left or right, which of the image's mirror image would not be true."""
    return np.array([any(map(_SIDES.search, record.captions)) for record in records], bool)


class StoredImages:
    """Features from a store. With `mirrored`, each is as it is or mirrored, by chance of (seed, epoch, image).

    Args:
        sided: (images,) bool, those that are never mirrored; None: all may be.
    """

    def __init__(
        self,
        store: FeatureStore,
        ids: Sequence[ImageId],
        *,
        seed: int,
        mirrored: bool,
        mentions_left_right: np.ndarray | None = None,
    ):
        self.store, self.places, self.seed, self.mirrored = store, store.places(ids), seed, mirrored
        self.mentions_left_right = mentions_left_right

    def __call__(self, numbers: Sequence[int] | np.ndarray, epoch: int) -> Features:
        views = _views(numbers, epoch, self.seed, self.mentions_left_right) if self.mirrored else None
        return Features(torch.from_numpy(self.store.rows_at(self.places[numbers], views=views)))


def _views(
    numbers: Sequence[int] | np.ndarray, epoch: int, seed: int, mentions_left_right: np.ndarray | None
) -> list[int]:
    """0 (as it is) or 1 (mirrored) for each image."""
    drawn = [int(np.random.default_rng((seed, epoch, 2, number)).integers(2)) for number in numbers]
    return (
        drawn
        if mentions_left_right is None
        else [view * int(not mentions_left_right[n]) for view, n in zip(drawn, numbers, strict=True)]
    )


class RegionImages:
    """Precomputed regions, read from one file per image and padded to the largest number in a batch."""

    def __init__(self, paths: Sequence[str], files: RegionFiles):
        self.paths, self.files = PackedStrings(paths), files

    def __call__(self, numbers: Sequence[int] | np.ndarray, epoch: int) -> Features:
        regions, valid = pad_regions([self.files.read(str(self.paths[number])) for number in numbers])
        return Features(torch.from_numpy(regions), torch.from_numpy(valid))


class ShardFeatures:
    """Features that shards hold, an array (views, N, D) an image; the other arguments as for `StoredImages`."""

    def __init__(
        self,
        paths: Sequence[str],
        *,
        seed: int,
        mirrored: bool,
        mentions_left_right: np.ndarray | None = None,
    ):
        self.paths, self.seed, self.mirrored, self.mentions_left_right = (
            PackedStrings(paths),
            seed,
            mirrored,
            mentions_left_right,
        )

    def __call__(self, numbers: Sequence[int] | np.ndarray, epoch: int) -> Features:
        views = (
            _views(numbers, epoch, self.seed, self.mentions_left_right)
            if self.mirrored
            else [0] * len(numbers)
        )
        rows = [_read_array(str(self.paths[n]))[view] for n, view in zip(numbers, views, strict=True)]
        return Features(torch.from_numpy(np.stack(rows)))


def _read_array(path: str) -> np.ndarray:
    try:
        return np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{path}: no array of numbers ({error}); write the shards again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


class PixelImages:
    """Pixels from image files; with `augmentation` changed at random, a function of (seed, epoch, image).

    `mentions_left_right` as for `StoredImages`.
    """

    def __init__(
        self,
        paths: Sequence[str],
        preprocessing: Preprocessing,
        *,
        augmentation: AugmentationConfig | None,
        seed: int,
        mentions_left_right: np.ndarray | None = None,
    ):
        self.paths, self.preprocessing, self.augmentation, self.seed = (
            PackedStrings(paths),
            preprocessing,
            augmentation,
            seed,
        )
        self.mentions_left_right = mentions_left_right

    def __call__(self, numbers: Sequence[int] | np.ndarray, epoch: int) -> Tensor:
        pixels = torch.stack([self._one(int(number), epoch) for number in numbers])
        return normalize(pixels, self.preprocessing)  # all of them at once

    def _one(self, number: int, epoch: int) -> Tensor:
        image = load_image(str(self.paths[number]))
        if self.augmentation is None:
            return preprocess_uint8(image, self.preprocessing)
        generator = np.random.default_rng((self.seed, epoch, 3, number))
        augmentation = self.augmentation
        if self.mentions_left_right is not None and self.mentions_left_right[number]:
            augmentation = replace(augmentation, flip=0.0)
        return augment(image, self.preprocessing, augmentation, generator=generator)


class TrainingBatches(Dataset):
    """Makes the batch of given image numbers, in whatever process asks for it.

    `weights` are those of all captions, in the order of `captions`; None: a batch has none.
    """

    def __init__(
        self,
        ids: Sequence[ImageId] | PackedStrings,
        captions: EncodedCaptions,
        images: Images,
        *,
        width: int,
        pad: int,
        seed: int,
        epoch: int,
        weights: np.ndarray | None = None,
    ):
        self.ids, self.captions, self.images, self.weights = ids, captions, images, weights
        self.width, self.pad, self.seed, self.epoch = width, pad, seed, epoch

    def __getitem__(self, numbers: np.ndarray) -> Batch:
        drawn = [
            self.captions.numbers_of(
                number, self.width, np.random.default_rng((self.seed, self.epoch, 1, number))
            )
            for number in numbers
        ]
        chosen = [[self.captions.ids_of(caption) for caption in own] for own in drawn]
        words, batch_sizes, tokens = pack(chosen, width=self.width, pad=self.pad)
        return Batch(
            image_ids=[self.ids[number] for number in numbers],
            images=self.images(numbers, self.epoch),
            ids=words,
            batch_sizes=batch_sizes,
            tokens=tokens,
            weights=None if self.weights is None else self._weights(self.weights, drawn),
        )

    def _weights(self, weights: np.ndarray, drawn: Sequence[np.ndarray]) -> Tensor:
        """(B, K) float32, 0 where there is no caption."""
        found = torch.zeros(len(drawn), self.width)
        for row, captions in zip(found, drawn, strict=True):
            row[: len(captions)] = torch.from_numpy(weights[captions])
        return found


def loader(
    dataset: TrainingBatches, batches: Sequence[np.ndarray], *, workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """Batches in the given order, made by `workers` processes (0: by this one)."""
    return DataLoader(
        dataset,
        sampler=list(batches),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_share_memory,
    )


def _share_memory(worker: int) -> None:
    """Keep the search for reference cycles off what was inherited: it would write to every object, and so copy it."""
    gc.freeze()
