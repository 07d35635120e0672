"""Images of a batch by their numbers: pixels, stored features, features in shards or precomputed regions."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from captioning.errors import UserError
from captioning.images.augmentation import AugmentationConfig, augment
from captioning.images.preprocessing import Preprocessing, normalize, preprocess_uint8
from captioning.images.reading import load_image
from captioning.loaders.feature_store import FeatureStore
from captioning.models.encoders.region_files import RegionFiles, pad_regions
from captioning.records import ImageId, ImageRecord
from captioning.tensors import Features
from captioning.utils.file_slice import read_bytes
from captioning.utils.files import ARRAY_ERRORS
from captioning.utils.packed_strings import PackedStrings

Numbers = Sequence[int] | np.ndarray

Images = Callable[[Numbers, int], Features | Tensor]
"""(image numbers, epoch) -> features, or pixels (B, 3, height, width)."""

_LEFT_RIGHT = re.compile(r"\b(left|right)(most|-?hand(ed)?)?\b", re.IGNORECASE)

# third number of a random generator's seed (seed, epoch, purpose, image)
_MIRROR, _AUGMENT = 2, 3


def mentions_left_right(records: Iterable[ImageRecord]) -> np.ndarray:
    """(images,) bool: a caption says left or right, which would be wrong for the mirrored image."""
    return np.array([any(map(_LEFT_RIGHT.search, record.captions)) for record in records], bool)


class RandomMirroring:
    """Chooses view 0 (as it is) or 1 (mirrored) of each image, a function of (seed, epoch, image).

    Args:
        seed: None: always view 0.
        fixed: (images,) bool, images that are never mirrored; None: all may be.
    """

    def __init__(self, seed: int | None, fixed: np.ndarray | None = None):
        self.seed, self.fixed = seed, fixed

    def views(self, numbers: Numbers, epoch: int) -> list[int]:
        if self.seed is None:
            return [0] * len(numbers)
        return [
            0
            if self.fixed is not None and self.fixed[number]
            else int(np.random.default_rng((self.seed, epoch, _MIRROR, number)).integers(2))
            for number in numbers
        ]


NO_MIRRORING = RandomMirroring(None)


class StoredImages:
    """Features from a feature store."""

    def __init__(
        self, store: FeatureStore, ids: Sequence[ImageId], mirroring: RandomMirroring = NO_MIRRORING
    ):
        self.store, self.places, self.mirroring = store, store.places(ids), mirroring

    def __call__(self, numbers: Numbers, epoch: int) -> Features:
        rows = self.store.rows_at(self.places[numbers], views=self.mirroring.views(numbers, epoch))
        return Features(torch.from_numpy(rows))


class RegionImages:
    """Precomputed regions, read from one file per image and padded to the largest number in a batch."""

    def __init__(self, paths: Sequence[str], files: RegionFiles):
        self.paths, self.files = PackedStrings(paths), files

    def __call__(self, numbers: Numbers, epoch: int) -> Features:
        regions, valid = pad_regions([self.files.read(str(self.paths[number])) for number in numbers])
        return Features(torch.from_numpy(regions), torch.from_numpy(valid))


class ShardFeatures:
    """Features in shards, an array (views, N, D) per image."""

    def __init__(self, paths: Sequence[str], mirroring: RandomMirroring = NO_MIRRORING):
        self.paths, self.mirroring = PackedStrings(paths), mirroring

    def __call__(self, numbers: Numbers, epoch: int) -> Features:
        views = self.mirroring.views(numbers, epoch)
        rows = [_read_array(str(self.paths[n]))[view] for n, view in zip(numbers, views, strict=True)]
        return Features(torch.from_numpy(np.stack(rows)))


def _read_array(path: str) -> np.ndarray:
    try:
        return np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
    except ARRAY_ERRORS as error:
        raise UserError(f"{path}: cannot be read as an array ({error}); write the shards again") from None


class PixelImages:
    """Normalised pixels of image files, optionally augmented at random: a function of (seed, epoch, image).

    Args:
        fixed: (images,) bool, images that are never mirrored; None: all may be.
    """

    def __init__(
        self,
        paths: Sequence[str],
        preprocessing: Preprocessing,
        *,
        augmentation: AugmentationConfig | None,
        seed: int,
        fixed: np.ndarray | None = None,
    ):
        self.paths, self.preprocessing = PackedStrings(paths), preprocessing
        self.augmentation, self.seed, self.fixed = augmentation, seed, fixed

    def __call__(self, numbers: Numbers, epoch: int) -> Tensor:
        pixels = torch.stack([self._load(int(number), epoch) for number in numbers])
        return normalize(pixels, self.preprocessing)  # the batch at once, which is faster

    def _load(self, number: int, epoch: int) -> Tensor:
        image = load_image(str(self.paths[number]))
        if self.augmentation is None:
            return preprocess_uint8(image, self.preprocessing)
        augmentation = self.augmentation
        if self.fixed is not None and self.fixed[number]:
            augmentation = replace(augmentation, flip=0.0)
        generator = np.random.default_rng((self.seed, epoch, _AUGMENT, number))
        return augment(image, self.preprocessing, augmentation, generator=generator)
