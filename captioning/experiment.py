"""An experiment: YAML and overrides -> settings that are typed and checked, then built. The only room that sees all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from captioning import datasets
from captioning.captioner.captioner import Captioner, count_parameters, load_weights
from captioning.config import ExperimentConfig
from captioning.datasets import of_split
from captioning.datasets.checks import write_skipped
from captioning.datasets.shards import ShardsConfig, read_index
from captioning.errors import UserError
from captioning.images.reading import BadImage, read_image
from captioning.loaders.batches import (
    EncodedCaptions,
)
from captioning.loaders.feature_store import FeatureProvenance, FeatureStore, build_store, refuse_other_origin
from captioning.loaders.sources import ImageSettings, Source
from captioning.models.encoders import Encoder
from captioning.models.encoders.region_files import RegionFiles
from captioning.records import Collection, ImageRecord, Skip
from captioning.text.vocabulary import Vocabulary
from captioning.training import Data, Run, train
from captioning.training.checkpoint import Progress, has_checkpoint, latest, read_step
from captioning.training.distributed import World, join, local_device
from captioning.training.interruptions import Signals
from captioning.training.model_card import environment, model_card
from captioning.training.tracking import Tracker
from captioning.training.validation import Validator
from captioning.utils.files import fingerprint, write_json, write_text
from captioning.utils.packed_strings import PackedStrings


def choose_device(name: str) -> torch.device:
    """Raises UserError where `cuda` is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda asked for, but torch finds no CUDA device here; use device=cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return local_device(torch.device(name))


class Experiment:
    """A run: its settings, its data, its model; built in the order in which mistakes are cheap to find."""

    def __init__(self, config: ExperimentConfig, *, log: Callable[[str], None] = print):
        self.config, self._log = config, log
        self.folder = config.folder
        self.device = choose_device(config.device)
        self.world = World()

    def log(self, line: str) -> None:
        """Tell a person, and the run's `train.log`; the first process of several does."""
        if not self.world.first:
            return
        self._log(line)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "train.log", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    def collect(self) -> Collection:
        """The data set's records; what was passed over is listed in the run's `skipped.csv`."""
        return datasets.load(self.config.dataset, skipped_csv=self.folder / "skipped.csv")

    def build(self, vocabulary: Vocabulary) -> Captioner:
        """The captioner, yet to be trained, on the run's device. Sets torch's random numbers to the seed."""
        config = self.config
        torch.manual_seed(config.seed)
        captioner = Captioner.build(
            encoder=config.encoder,
            preprocessing=config.preprocessing,
            decoder=config.decoder,
            search=config.search,
            vocabulary=vocabulary,
        )
        return captioner.to(self.device)

    def source(self, captioner: Captioner, records: Sequence[ImageRecord]) -> Source:
        """Where the images of `records` come from: the feature store, filled on first use, or their files.

        The store serves whenever the encoder is frozen and pixels are not augmented; regions that others
        computed are read as they are. Records whose image cannot be read, or has no regions, are left out,
        listed, and too many of them are an error.
        """
        config = self.config
        settings = ImageSettings(
            config.dataset,
            config.encoder,
            config.preprocessing,
            config.augmentation,
            config.features,
            config.seed,
        )
        if config.encoder.precomputed:
            return Source(settings, self._with_regions(records, config.encoder.open_regions()), None)
        augmented = config.augmentation is not None and not config.augmentation.is_identity
        if isinstance(config.dataset, ShardsConfig):
            holds = read_index(config.dataset.root)["holds"]
            if holds["kind"] == "features":
                self._refuse_other_features(holds, captioner.encoder, augmented=augmented)
                return Source(settings, records, None, features=True)
            if config.features.use == "never" or augmented or not captioner.encoder.frozen:
                return Source(settings, records, None)  # they were opened when the shards were written
        if config.features.use == "auto" and captioner.encoder.frozen and not augmented:
            store = self.store(captioner.encoder, records)
            return Source(settings, [record for record in records if record.image_id in store], store)
        return Source(settings, self._readable(records), None)

    def begin_with(self, start: str, captioner: Captioner) -> None:
        """Fill `captioner` with the weights of a finished run or a model folder.

        Raises:
            UserError: it is neither, or of other words, other preprocessing or another architecture.
        """
        folder = Path(start) / "model" if (Path(start) / "model").is_dir() else Path(start)
        model = Captioner.open(folder)
        if model.vocabulary.words != captioner.vocabulary.words:
            raise UserError(
                f"start: {folder} has {len(model.vocabulary):,} words, these training captions give "
                f"{len(captioner.vocabulary):,} or others; use that run's dataset and vocabulary.min_count="
                f"{model.vocabulary.min_count}"
            )
        if model.config.preprocessing != self.config.preprocessing:
            raise UserError(
                f"start: {folder} was trained with other preprocessing than this config's; use that run's"
            )
        load_weights(captioner, folder / "model.safetensors")
        self.log(f"begins with the weights of {folder}")

    def _refuse_other_features(self, holds: Mapping[str, Any], encoder: Encoder, *, augmented: bool) -> None:
        """Raises UserError where the features in the shards are not those that this model would compute."""
        config = self.config
        root = config.dataset.root
        if augmented or not encoder.frozen or (config.features.flip and holds["views"] < 2):
            raise UserError(
                f"{root}: holds features ({holds['views']} view(s) an image), which serve neither a trained encoder "
                "nor augmentation nor, with one view, features.flip; write shards of images"
            )
        refuse_other_origin(
            root, FeatureProvenance(**holds["origin"]), FeatureProvenance.of(encoder, config.preprocessing)
        )

    def store(self, encoder: Encoder, records: Sequence[ImageRecord]) -> FeatureStore:
        """The feature store with these records in it."""
        if self.config.encoder.precomputed:
            raise UserError(
                f"encoder.kind {self.config.encoder.kind}: regions are precomputed; nothing to encode"
            )
        config = self.config.features
        origin = FeatureProvenance.of(encoder, self.config.preprocessing)
        root = Path(self.config.dataset.root)
        key = fingerprint([origin.fingerprint, str(root.absolute()), config.dtype, config.flip])
        return build_store(
            records,
            encoder,
            self.config.preprocessing,
            Path(config.root) / f"{root.name or 'data'}-{key}",
            dtype=config.dtype,
            flip=config.flip,
            max_bad=self.config.dataset.max_bad,
        )

    def _readable(self, records: Sequence[ImageRecord]) -> list[ImageRecord]:
        kept, skipped = [], []
        for record in tqdm(records, desc="checking images", unit="image", disable=None, delay=2):
            try:
                read_image(record.path)
                kept.append(record)
            except BadImage as error:
                skipped.append(Skip(item=error.path, reason=error.reason))
        self._refuse_too_many(skipped, len(records))
        return kept

    def _with_regions(self, records: Sequence[ImageRecord], files: RegionFiles) -> list[ImageRecord]:
        skipped = [
            Skip(item=str(record.image_id), reason=f"no file of regions among {files.location}")
            for record in records
            if files.find(record) is None
        ]
        self._refuse_too_many(skipped, len(records))
        return [record for record in records if files.find(record) is not None]

    def _refuse_too_many(self, skipped: Sequence[Skip], count: int) -> None:
        """List what is left out. Raises UserError where that is too much."""
        if skipped:
            write_skipped(str(self.folder / "skipped_images.csv"), skipped)
        if len(skipped) > self.config.dataset.max_bad * count:
            raise UserError(
                f"{len(skipped)} of {count} images cannot be read (first {skipped[0].item}: "
                f"{skipped[0].reason}); {self.folder / 'skipped_images.csv'} lists them"
            )

    def train(self, *, resume: bool = False) -> Progress:
        """Train, and leave the best model in `folder/model`. Reads the splits `train` and `val`, no other.

        Under torchrun all its processes train this one model. What the data set needs to have drawn or encoded
        is so by the first of them, while the others wait.
        """
        config, folder = self.config, self.folder
        self.world = join(self.device)
        if int(
            os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        ):  # torchrun starts again with the same command
            resume = has_checkpoint(folder)
        if not resume and has_checkpoint(folder):
            raise UserError(
                f"{folder}: there is a run already; go on with --resume, or choose another name=..."
            )
        kept = latest(folder, log=self.log) if resume else None
        if not self.world.first:
            self.world.wait()
        collection = self.collect()
        training, validation = of_split(collection, "train"), of_split(collection, "val")
        vocabulary = Vocabulary.build(
            (caption for record in training for caption in record.captions),
            min_count=config.vocabulary.min_count,
        )
        captioner = self.build(vocabulary)
        if config.start and not resume:
            self.begin_with(config.start, captioner)
        source = self.source(captioner, [*training, *validation])
        if self.world.first:
            self.world.wait()
        training, validation = source.of(training), source.of(validation)
        encoded = [
            EncodedCaptions.of(records, vocabulary, max_length=config.vocabulary.max_length)
            for records in (training, validation)
        ]
        if self.world.first:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "config.yaml", yaml.safe_dump(config.as_json(), sort_keys=False))
            write_json(folder / "env.json", environment(self.device))
            vocabulary.save(str(folder / "vocabulary.json"))
        sizes = count_parameters(captioner.decoder)["parameters"], count_parameters(captioner)["trainable"]
        self.log(
            f"{len(training):,} images with {encoded[0].first[-1]:,} captions to train on, {len(validation):,} to "
            f"validate with; {len(vocabulary):,} words; decoder of {sizes[0] / 1e6:.2f} M parameters, "
            f"{sizes[1] / 1e6:.2f} M trained; images from {source.where}"
        )
        if encoded[0].cut:
            self.log(f"{encoded[0].cut} captions cut to {config.vocabulary.max_length} words")
        data = Data(
            ids=PackedStrings(record.image_id for record in training),
            captions=encoded[0],
            images=source.images(training, training=True),
            validator=Validator(
                validation,
                source.images(validation, training=False),
                encoded[1],
                search=config.search,
                size=config.training.validation_images,
                more_metrics=[phase.metric for phase in (config.training, *config.phases)],
            ),
        )
        tracker = None
        if self.world.first:
            tracker = Tracker(
                config.tracking,
                folder,
                run_config=config.as_json(),
                resume_step=read_step(kept) if kept else None,
            )
        try:
            with Signals() as signals:
                run = Run(
                    folder=folder,
                    tracker=tracker,
                    seed=config.seed,
                    experiment=config.fingerprint,
                    model_card=lambda progress, scores: model_card(
                        config.as_json(), captioner, progress, scores
                    ),
                    log=self.log,
                    world=self.world,
                    device=self.device,
                    signals=signals,
                )
                progress = train(captioner, data, (config.training, *config.phases), run, resume=kept)
        except BaseException:
            if tracker:
                tracker.finish(exit_code=1)
            raise
        if tracker:
            tracker.finish()
        return progress
