"""Where the images of an experiment come from: a feature store, shards, region files or image files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from captioning.datasets import DatasetConfig
from captioning.datasets.shards import ShardsConfig
from captioning.images.augmentation import AugmentationConfig
from captioning.images.preprocessing import Preprocessing
from captioning.loaders.batches import (
    Images,
    PixelImages,
    RegionImages,
    ShardFeatures,
    StoredImages,
    mentions_left_right,
)
from captioning.loaders.feature_store import FeaturesConfig, FeatureStore
from captioning.models.encoders import EncoderConfig
from captioning.records import ImageRecord


class ImageSettings(NamedTuple):
    """The parts of an experiment's config that decide how its images are read."""

    dataset: DatasetConfig
    encoder: EncoderConfig
    preprocessing: Preprocessing
    augmentation: AugmentationConfig | None
    features: FeaturesConfig
    seed: int


class Source:
    """The records whose images can be read, and how to read them."""

    def __init__(
        self,
        settings: ImageSettings,
        records: Sequence[ImageRecord],
        store: FeatureStore | None,
        *,
        features: bool = False,
    ):
        self.config, self.store, self.features = settings, store, features  # whether shards hold features
        self._ids = {record.image_id for record in records}

    @property
    def where(self) -> str:
        if self.config.encoder.precomputed:
            return self.config.encoder.open_regions().location
        if isinstance(self.config.dataset, ShardsConfig) and not self.store:
            return (
                f"the {'features' if self.features else 'images'} in the shards of {self.config.dataset.root}"
            )
        return f"the feature store {self.store.folder}" if self.store else "their files"

    def of(self, records: Sequence[ImageRecord]) -> list[ImageRecord]:
        """Those of `records` whose image can be read."""
        return [record for record in records if record.image_id in self._ids]

    def images(self, records: Sequence[ImageRecord], *, training: bool) -> Images:
        """The images of `records`, by number; augmented or mirrored only for training."""
        config = self.config
        if config.encoder.precomputed:
            files = config.encoder.open_regions()
            paths = (files.find(record) for record in records)
            return RegionImages([path for path in paths if path], files)
        mirrored = training and config.features.flip
        fixed = mentions_left_right(records) if mirrored or (training and config.augmentation) else None
        if self.features:
            return ShardFeatures(
                [record.path for record in records],
                seed=config.seed,
                mirrored=mirrored,
                mentions_left_right=fixed,
            )
        if self.store is not None:
            ids = [record.image_id for record in records]
            return StoredImages(
                self.store, ids, seed=config.seed, mirrored=mirrored, mentions_left_right=fixed
            )
        return PixelImages(
            [record.path for record in records],
            config.preprocessing,
            augmentation=config.augmentation if training else None,
            seed=config.seed,
            mentions_left_right=fixed,
        )
