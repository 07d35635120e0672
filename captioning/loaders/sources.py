"""Where the images of a run come from: a feature store, shards of features, precomputed regions or image files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from captioning.datasets.base import BaseDatasetConfig
from captioning.datasets.checks import write_skipped
from captioning.errors import UserError
from captioning.images.augmentation import AugmentationConfig
from captioning.images.preprocessing import Preprocessing
from captioning.images.reading import BadImage, read_image
from captioning.loaders.feature_store import FeaturesConfig, FeatureStore
from captioning.loaders.feature_writer import build_store
from captioning.loaders.images import (
    Images,
    PixelImages,
    RandomMirroring,
    RegionImages,
    ShardFeatures,
    StoredImages,
    mentions_left_right,
)
from captioning.loaders.provenance import FeatureProvenance, refuse_other_provenance
from captioning.models.encoders import BaseEncoderConfig, Encoder
from captioning.models.encoders.region_files import RegionFiles
from captioning.records import ImageRecord, Skip
from captioning.utils.files import fingerprint
from captioning.utils.progress import progress


class ImageSettings(NamedTuple):
    """The settings of a run that decide how its images are read."""

    dataset: BaseDatasetConfig
    encoder: BaseEncoderConfig
    preprocessing: Preprocessing
    augmentation: AugmentationConfig | None
    features: FeaturesConfig
    seed: int

    @property
    def augmented(self) -> bool:
        return self.augmentation is not None and not self.augmentation.is_identity


class ImageSource(ABC):
    """The records whose images can be read, and the images themselves."""

    location: str
    """Where the images are, for messages."""

    def __init__(self, settings: ImageSettings, records: Sequence[ImageRecord]):
        self.settings = settings
        self._ids = {record.image_id for record in records}

    def readable(self, records: Sequence[ImageRecord]) -> list[ImageRecord]:
        """The records whose images can be read."""
        return [record for record in records if record.image_id in self._ids]

    @abstractmethod
    def images(self, records: Sequence[ImageRecord], *, training: bool) -> Images:
        """The images of readable records, by number; augmented or mirrored only for training."""

    def _mirroring(self, records: Sequence[ImageRecord], *, training: bool) -> RandomMirroring:
        """Of stored features: the mirrored view is used in training with `features.flip`."""
        if not (training and self.settings.features.flip):
            return RandomMirroring(None)
        return RandomMirroring(self.settings.seed, mentions_left_right(records))


class PixelSource(ImageSource):
    """Image files, decoded and preprocessed for every batch."""

    def __init__(
        self, settings: ImageSettings, records: Sequence[ImageRecord], location: str = "their files"
    ):
        super().__init__(settings, records)
        self.location = location

    def images(self, records: Sequence[ImageRecord], *, training: bool) -> Images:
        augmentation = self.settings.augmentation if training else None
        return PixelImages(
            [record.path for record in records],
            self.settings.preprocessing,
            augmentation=augmentation,
            seed=self.settings.seed,
            fixed=mentions_left_right(records) if augmentation else None,
        )


class StoreSource(ImageSource):
    """Features of a frozen encoder, from the feature store."""

    def __init__(self, settings: ImageSettings, records: Sequence[ImageRecord], store: FeatureStore):
        super().__init__(settings, [record for record in records if record.image_id in store])
        self.store, self.location = store, f"the feature store {store.folder}"

    def images(self, records: Sequence[ImageRecord], *, training: bool) -> Images:
        ids = [record.image_id for record in records]
        return StoredImages(self.store, ids, self._mirroring(records, training=training))


class ShardFeatureSource(ImageSource):
    """Features that the data set itself holds."""

    def __init__(self, settings: ImageSettings, records: Sequence[ImageRecord]):
        super().__init__(settings, records)
        self.location = f"the features in the shards of {settings.dataset.root}"

    def images(self, records: Sequence[ImageRecord], *, training: bool) -> Images:
        return ShardFeatures([record.path for record in records], self._mirroring(records, training=training))


class RegionSource(ImageSource):
    """Precomputed regions, one file per image."""

    def __init__(self, settings: ImageSettings, records: Sequence[ImageRecord], files: RegionFiles):
        super().__init__(settings, records)
        self.files, self.location = files, files.location

    def images(self, records: Sequence[ImageRecord], *, training: bool) -> Images:
        paths = (self.files.find(record) for record in records)
        return RegionImages([path for path in paths if path], self.files)


def open_source(
    settings: ImageSettings, encoder: Encoder, records: Sequence[ImageRecord], *, skipped_csv: Path
) -> ImageSource:
    """The source of the images of `records`; a feature store is filled first.

    The feature store is used if the encoder is frozen and pixels are not augmented. Records whose images cannot be
    read, or have no regions, are left out and listed in `skipped_csv`.

    Raises:
        UserError: more than `dataset.max_bad` of the images are unusable, or stored features are of another encoder.
    """
    dataset = settings.dataset
    if settings.encoder.precomputed:
        files = settings.encoder.open_regions()
        reasons = {
            str(record.image_id): f"no file of regions among {files.location}"
            for record in records
            if files.find(record) is None
        }
        refuse_too_many(reasons, len(records), max_bad=dataset.max_bad, skipped_csv=skipped_csv)
        return RegionSource(settings, [r for r in records if str(r.image_id) not in reasons], files)
    if (content := dataset.stored_features()) is not None:
        _check_stored_features(settings, encoder, content)
        return ShardFeatureSource(settings, records)
    if settings.features.use == "auto" and encoder.frozen and not settings.augmented:
        return StoreSource(settings, records, open_store(settings, encoder, records))
    if dataset.images_verified:
        return PixelSource(settings, records, f"the images in the shards of {dataset.root}")
    reasons = unreadable(records)
    refuse_too_many(reasons, len(records), max_bad=dataset.max_bad, skipped_csv=skipped_csv)
    return PixelSource(settings, [record for record in records if record.path not in reasons])


def open_store(settings: ImageSettings, encoder: Encoder, records: Sequence[ImageRecord]) -> FeatureStore:
    """The feature store of these settings, with the features of `records` in it."""
    if settings.encoder.precomputed:
        raise UserError(f"encoder.kind {settings.encoder.kind}: regions are precomputed; nothing to encode")
    features = settings.features
    provenance = FeatureProvenance.of(encoder, settings.preprocessing)
    root = Path(settings.dataset.root)
    key = fingerprint([provenance.fingerprint, str(root.absolute()), features.dtype, features.flip])
    return build_store(
        records,
        encoder,
        settings.preprocessing,
        Path(features.root) / f"{root.name or 'data'}-{key}",
        dtype=features.dtype,
        flip=features.flip,
        max_bad=settings.dataset.max_bad,
    )


def unreadable(records: Sequence[ImageRecord]) -> dict[str, str]:
    """Paths of the images that cannot be decoded, with the reasons."""
    reasons = {}
    for record in progress(records, desc="checking images", unit="image", delay=2):
        try:
            read_image(record.path)
        except BadImage as error:
            reasons[record.path] = error.reason
    return reasons


def refuse_too_many(reasons: Mapping[str, str], count: int, *, max_bad: float, skipped_csv: Path) -> None:
    """List unusable images in a file. Raises UserError if they are more than the share `max_bad` of `count`."""
    if reasons:
        write_skipped(str(skipped_csv), [Skip(item, reason) for item, reason in reasons.items()])
    if len(reasons) > max_bad * count:
        item, reason = next(iter(reasons.items()))
        raise UserError(
            f"{len(reasons)} of {count} images cannot be read (first {item}: {reason}); {skipped_csv} lists them"
        )


def _check_stored_features(settings: ImageSettings, encoder: Encoder, content: Mapping[str, Any]) -> None:
    """Raises UserError if the data set's features are not those that this encoder would compute."""
    root, views = settings.dataset.root, content["views"]
    if settings.augmented or not encoder.frozen or (settings.features.flip and views < 2):
        raise UserError(
            f"{root}: holds features ({views} view(s) an image), which serve neither a trained encoder "
            "nor augmentation nor, with one view, features.flip; write shards of images"
        )
    refuse_other_provenance(
        root,
        FeatureProvenance(**content["provenance"]),
        FeatureProvenance.of(encoder, settings.preprocessing),
    )
