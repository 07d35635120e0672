"""Where the images of a run come from: a feature store, shards of features, precomputed regions or image files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from captioning.datasets.base import BaseDatasetConfig
from captioning.datasets.checks import refuse_bad_split, write_skipped
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
from captioning.utils.file_slice import FileState, content_crc
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


class Survey(NamedTuple):
    """Image files that were all read once."""

    reasons: dict[str, str]  # path -> why the image cannot be decoded
    crcs: dict[str, int]  # path -> CRC-32 of the other files
    noted: list[Skip]  # of the other files


class ImageSource(ABC):
    """The records whose images can be read, and the images themselves."""

    location: str
    """Where the images are, for messages."""
    noted: Sequence[Skip] = ()
    """Notes on usable images: frames that are left out, a part that may be lost."""

    def __init__(self, settings: ImageSettings, records: Sequence[ImageRecord], skipped: Sequence[Skip] = ()):
        """`skipped`: the images that cannot be used."""
        self.settings, self.skipped = settings, skipped
        self._ids = {record.image_id for record in records}

    def readable(self, records: Sequence[ImageRecord]) -> list[ImageRecord]:
        """The records whose images can be read."""
        return [record for record in records if record.image_id in self._ids]

    @abstractmethod
    def contents(self, records: Sequence[ImageRecord]) -> Iterable[Sequence[object]]:
        """For each of these readable records, values that are different if the image's content is."""

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
        self,
        settings: ImageSettings,
        records: Sequence[ImageRecord],
        skipped: Sequence[Skip] = (),
        *,
        survey: Survey | None = None,
    ):
        """`survey`: of the files; None for slices of shards."""
        super().__init__(settings, records, skipped)
        crcs, self.noted = (survey.crcs, survey.noted) if survey else (None, ())
        self.location = (
            "their files" if crcs is not None else f"the images in the shards of {settings.dataset.root}"
        )
        self._crcs = crcs or {}

    def contents(self, records: Sequence[ImageRecord]) -> Iterable[Sequence[object]]:
        return ([self._crcs.get(record.path) or content_crc(record.path)] for record in records)

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
        paths = {record.image_id: record.path for record in records}
        self.noted = [Skip(paths[image_id], note) for image_id, note in store.noted if image_id in paths]

    def contents(self, records: Sequence[ImageRecord]) -> Iterable[Sequence[object]]:
        return self.store.contents([record.image_id for record in records])

    def images(self, records: Sequence[ImageRecord], *, training: bool) -> Images:
        ids = [record.image_id for record in records]
        return StoredImages(self.store, ids, self._mirroring(records, training=training))


class ShardFeatureSource(ImageSource):
    """Features that the data set itself holds."""

    def __init__(self, settings: ImageSettings, records: Sequence[ImageRecord]):
        super().__init__(settings, records)
        self.location = f"the features in the shards of {settings.dataset.root}"

    def contents(self, records: Sequence[ImageRecord]) -> Iterable[Sequence[object]]:
        return ([content_crc(record.path)] for record in records)

    def images(self, records: Sequence[ImageRecord], *, training: bool) -> Images:
        return ShardFeatures([record.path for record in records], self._mirroring(records, training=training))


class RegionSource(ImageSource):
    """Precomputed regions, one file per image."""

    def __init__(
        self,
        settings: ImageSettings,
        records: Sequence[ImageRecord],
        files: RegionFiles,
        skipped: Sequence[Skip],
    ):
        super().__init__(settings, records, skipped)
        self.files, self.location = files, files.location

    def _paths(self, records: Sequence[ImageRecord]) -> list[str]:
        return [path for record in records if (path := self.files.find(record))]

    def contents(self, records: Sequence[ImageRecord]) -> Iterable[Sequence[object]]:
        """Sizes and times of the files, which together are too large to be read."""
        states = (FileState.of(path) for path in self._paths(records))
        return ((state.size, state.mtime_ns // 10**9) for state in states)  # tar keeps seconds

    def images(self, records: Sequence[ImageRecord], *, training: bool) -> Images:
        return RegionImages(self._paths(records), self.files)


def open_source(
    settings: ImageSettings, encoder: Encoder, records: Sequence[ImageRecord], *, skipped_csv: Path
) -> ImageSource:
    """The source of the images of `records`; a feature store is filled first.

    The feature store is used if the encoder is frozen and pixels are not augmented. Records whose images cannot be
    read, or have no regions, are left out; they are the source's `skipped`.

    Raises:
        UserError: more than `dataset.max_bad` of the images, or of those of a split, are unusable (`skipped_csv` then
            lists them), or stored features are of another encoder.
    """
    source = _open_source(settings, encoder, records, skipped_csv=skipped_csv)
    readable = {record.image_id for record in source.readable(records)}
    refuse_bad_split(
        {record.path: record.split for record in records if record.image_id not in readable},
        (record.split for record in records),
        max_bad=settings.dataset.max_bad,
        where=settings.dataset.root,
    )
    return source


def _open_source(
    settings: ImageSettings, encoder: Encoder, records: Sequence[ImageRecord], *, skipped_csv: Path
) -> ImageSource:
    dataset = settings.dataset
    if settings.encoder.precomputed:
        files = settings.encoder.open_regions()
        reasons = {
            str(record.image_id): files.why_missing(record)
            for record in records
            if files.find(record) is None
        }
        skipped = refuse_too_many(reasons, len(records), max_bad=dataset.max_bad, skipped_csv=skipped_csv)
        found = [record for record in records if str(record.image_id) not in reasons]
        return RegionSource(settings, found, files, skipped)
    if (content := dataset.stored_features()) is not None:
        _check_stored_features(settings, encoder, content)
        return ShardFeatureSource(settings, records)
    if settings.features.use == "auto" and encoder.frozen and not settings.augmented:
        return StoreSource(settings, records, open_store(settings, encoder, records))
    if dataset.images_verified:
        return PixelSource(settings, records)
    survey = survey_images(records)
    skipped = refuse_too_many(survey.reasons, len(records), max_bad=dataset.max_bad, skipped_csv=skipped_csv)
    readable = [record for record in records if record.path not in survey.reasons]
    return PixelSource(settings, readable, skipped, survey=survey)


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


def survey_images(records: Sequence[ImageRecord]) -> Survey:
    """Read and decode all images."""
    survey = Survey({}, {}, [])
    for record in progress(records, desc="checking images", unit="image", delay=2):
        try:
            notes = read_image(record.path).notes
            survey.crcs[record.path] = content_crc(record.path)
        except BadImage as error:
            survey.reasons[record.path] = error.reason
        except OSError as error:
            survey.reasons[record.path] = f"cannot be read ({error.strerror})"
        else:
            survey.noted.extend(Skip(record.path, note) for note in notes)
    return survey


def describe_notes(noted: Sequence[Skip]) -> str:
    """One line about notes on images."""
    return f"{len(noted):,} images are used with a note (first {noted[0].item}: {noted[0].reason})"


def refuse_too_many(
    reasons: Mapping[str, str], count: int, *, max_bad: float, skipped_csv: Path
) -> list[Skip]:
    """The unusable images. Raises UserError, and lists them in a file, if they are over `max_bad` of `count`."""
    skipped = [Skip(item, reason) for item, reason in reasons.items()]
    if len(skipped) > max_bad * count:
        write_skipped(skipped_csv, skipped)
        item, reason = next(iter(reasons.items()))
        raise UserError(
            f"{len(reasons)} of {count} images cannot be read (first {item}: {reason}); {skipped_csv} lists them"
        )
    return skipped


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
