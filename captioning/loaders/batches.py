"""Training batches in an order that is a function of (seed, epoch), so that a run can resume at any batch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioning.errors import UserError
from captioning.loaders.captions import EncodedCaptions, pad_captions
from captioning.loaders.images import Images
from captioning.records import ImageId
from captioning.tensors import Batch
from captioning.utils.packed_strings import PackedStrings

BATCHES_PER_POOL = 32
"""Batches whose images are sorted by caption length together: enough for similar lengths, few enough to be random."""

# third number of a random generator's seed (seed, epoch, purpose, ...); `images` has 2 and 3
_ORDER, _CAPTIONS = 0, 1


def bucketed_batches(captions: EncodedCaptions, *, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch, each an array of `size` image numbers (the last may be smaller).

    Images are shuffled and, within pools of `BATCHES_PER_POOL` batches, sorted by the length of their longest
    caption, so that little padding is needed; then the batches are shuffled.
    """

    def split(pool: np.ndarray) -> list[np.ndarray]:
        return [pool[i : i + size] for i in range(0, len(pool), size)]

    return _pooled_batches(captions, size, split, seed=seed, epoch=epoch)


def token_batches(
    captions: EncodedCaptions, *, max_tokens: int, captions_per_image: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """As `bucketed_batches`, but with as many images per batch as `max_tokens` allows.

    An image counts `captions_per_image` times the target tokens of the longest caption in its batch, padding
    included. Only a batch of a single image may have more than `max_tokens`.
    """
    targets = captions.max_lengths() - 1  # `<start>` is no target

    def split(pool: np.ndarray) -> list[np.ndarray]:
        begins, begin = [], 0
        for position, length in enumerate(targets[pool].tolist()):  # ascending
            if position > begin and (position - begin + 1) * captions_per_image * length > max_tokens:
                begins.append(position)
                begin = position
        return np.split(pool, begins)

    typical_size = max(1, int(max_tokens / (captions_per_image * targets.mean())))
    return _pooled_batches(captions, typical_size, split, seed=seed, epoch=epoch)


def _pooled_batches(
    captions: EncodedCaptions,
    typical_size: int,
    split: Callable[[np.ndarray], list[np.ndarray]],
    *,
    seed: int,
    epoch: int,
) -> list[np.ndarray]:
    """Batches of pools of images; `split` divides a pool that is sorted by length."""
    generator = np.random.default_rng((seed, epoch, _ORDER))
    lengths = captions.max_lengths()
    shuffled = generator.permutation(len(lengths))
    pool_size = typical_size * BATCHES_PER_POOL
    batches: list[np.ndarray] = []
    for begin in range(0, len(lengths), pool_size):
        pool = shuffled[begin : begin + pool_size]
        batches += split(pool[np.argsort(lengths[pool], kind="stable")])
    return [batches[i] for i in generator.permutation(len(batches))]


class TrainingBatches(Dataset):
    """Makes a `Batch` from image numbers, in any worker process.

    Args:
        weights: (captions,) weights of all captions in the loss, in the order of `captions`; None: all 1.
    """

    def __init__(
        self,
        ids: Sequence[ImageId] | PackedStrings,
        captions: EncodedCaptions,
        images: Images,
        *,
        captions_per_image: int,
        pad: int,
        seed: int,
        epoch: int,
        weights: np.ndarray | None = None,
    ):
        self.ids, self.captions, self.images, self.weights = ids, captions, images, weights
        self.captions_per_image, self.pad, self.seed, self.epoch = captions_per_image, pad, seed, epoch

    def __getitem__(self, numbers: np.ndarray) -> Batch:
        chosen = [self._sample(number) for number in numbers]
        ids, batch_sizes, tokens = pad_captions(
            [[self.captions.caption(caption) for caption in of_image] for of_image in chosen],
            captions_per_image=self.captions_per_image,
            pad=self.pad,
        )
        return Batch(
            image_ids=[self.ids[number] for number in numbers],
            images=self.images(numbers, self.epoch),
            ids=ids,
            batch_sizes=batch_sizes,
            tokens=tokens,
            weights=None if self.weights is None else self._pad_weights(self.weights, chosen),
        )

    def _sample(self, number: int) -> np.ndarray:
        generator = np.random.default_rng((self.seed, self.epoch, _CAPTIONS, number))
        return self.captions.sample(number, self.captions_per_image, generator)

    def _pad_weights(self, weights: np.ndarray, chosen: Sequence[np.ndarray]) -> Tensor:
        """(B, K) float32, 0 where there is no caption."""
        padded = torch.zeros(len(chosen), self.captions_per_image)
        for row, captions in zip(padded, chosen, strict=True):
            row[: len(captions)] = torch.from_numpy(weights[captions])
        return padded


class _WithErrors(Dataset):
    """Returns a UserError instead of raising it: DataLoader would change its type and text on the way here."""

    def __init__(self, dataset: TrainingBatches):
        self.dataset = dataset

    def __getitem__(self, numbers: np.ndarray) -> Batch | UserError:
        try:
            return self.dataset[numbers]
        except UserError as error:
            return error


def loader(
    dataset: TrainingBatches, batches: Sequence[np.ndarray], *, workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """The given batches in order, made by `workers` processes (0: by this one).

    Raises:
        UserError: as `dataset`, in whichever process.
    """
    loaded: DataLoader[Batch | UserError] = DataLoader(
        _WithErrors(dataset),
        sampler=list(batches),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_freeze_inherited_objects,
    )
    for batch in loaded:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _freeze_inherited_objects(worker: int) -> None:
    """Exempt inherited objects from the garbage collector, which would write to their pages and so copy them."""
    gc.freeze()
