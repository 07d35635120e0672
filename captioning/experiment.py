"""A run: its settings -> data, model and training."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import yaml

from captioning import datasets
from captioning.captioner.captioner import Captioner, count_parameters, load_weights
from captioning.config import ExperimentConfig
from captioning.datasets.checks import write_skipped
from captioning.datasets.splits import training_splits
from captioning.errors import UserError, notes_to
from captioning.loaders.captions import EncodedCaptions
from captioning.loaders.feature_store import FeatureStore
from captioning.loaders.sources import ImageSettings, ImageSource, describe_notes, open_source, open_store
from captioning.models.encoders import Encoder
from captioning.records import Collection, ImageRecord
from captioning.text.vocabulary import Vocabulary
from captioning.training import Data, Run, train
from captioning.training.checkpoint import Progress, has_checkpoint, latest, read_identity, read_step
from captioning.training.distributed import World, join, local_device
from captioning.training.identity import (
    Fingerprint,
    Identity,
    caption_fingerprints,
    content_fingerprints,
    refuse_other_data,
    refuse_other_settings,
)
from captioning.training.interruptions import Signals
from captioning.training.model_card import environment, model_card
from captioning.training.tracking import Tracker
from captioning.training.validation import Validator
from captioning.utils.files import disk_full, explain_full_disk, write_json, write_text
from captioning.utils.locks import folder_lock
from captioning.utils.packed_strings import PackedStrings
from captioning.utils.progress import timestamped

NOTES = "image_notes.csv"
"""File in a run's folder: images that are used although something may be wrong with them."""


def choose_device(name: str) -> torch.device:
    """The device of a setting "auto" (a CUDA GPU if there is one), "cpu", "cuda" or "mps" (Apple's GPUs).

    Raises:
        UserError: there is no such device.
    """
    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if missing.get(name):
        raise UserError(f"device: {name} asked for, but torch finds no such device here; use device=cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return local_device(torch.device(name))


class Experiment:
    """The pieces of a run (data, model, training) by its settings."""

    def __init__(self, config: ExperimentConfig, *, log: Callable[[str], None] = print):
        """`log` receives the lines that are also written to the run's `train.log`."""
        self.config, self._log = config, log
        self.folder = config.folder
        self.device = choose_device(config.device)
        self.world = World()
        self._held: list[Callable[[], None]] | None = None

    def log(self, line: str) -> None:
        """Print a line and append it to `train.log`, in the first process only."""
        if self.world.first:
            self._log(line)
            self._write(functools.partial(self._append, timestamped(line)))

    def _append(self, line: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / "train.log", "a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:
            if not disk_full(error):  # the line was printed
                raise

    def _write(self, write: Callable[[], None]) -> None:
        """Change a file of the run: at once, or at the end of `_holding_writes`."""
        if self._held is None:
            write()
        else:
            self._held.append(write)

    @contextlib.contextmanager
    def _holding_writes(self, resume: bool) -> Iterator[None]:
        """The files of a resumed run stay as they are if the block fails: its data may be others."""
        held: list[Callable[[], None]] = []
        self._held = held if resume else None
        try:
            yield
        finally:
            self._held = None
        for write in held:
            write()

    def load_dataset(self) -> Collection:
        """The data set's records; skipped items are listed in the run's `skipped.csv`."""
        path = self.folder / "skipped.csv"
        if self._held is None:
            return datasets.load(self.config.dataset, skipped_csv=path)
        collection = datasets.load(self.config.dataset)
        if collection.skipped:
            self._write(functools.partial(write_skipped, path, collection.skipped))
        return collection

    def build_captioner(self, vocabulary: Vocabulary) -> Captioner:
        """An untrained captioner on the run's device. Seeds torch's random numbers."""
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

    @property
    def image_settings(self) -> ImageSettings:
        config = self.config
        return ImageSettings(
            dataset=config.dataset,
            encoder=config.encoder,
            preprocessing=config.preprocessing,
            augmentation=config.augmentation,
            features=config.features,
            seed=config.seed,
        )

    def image_source(self, encoder: Encoder, records: Sequence[ImageRecord]) -> ImageSource:
        """The images of `records`; unusable ones are listed in the run's `skipped_images.csv`, notes in `NOTES`.

        See `open_source`.
        """
        path = self.folder / "skipped_images.csv"
        source = open_source(self.image_settings, encoder, records, skipped_csv=path)
        if source.skipped:
            self._write(functools.partial(write_skipped, path, source.skipped))
        if source.noted:
            self._write(functools.partial(write_skipped, self.folder / NOTES, source.noted))
        return source

    def feature_store(self, encoder: Encoder, records: Sequence[ImageRecord]) -> FeatureStore:
        """The run's feature store, with the features of these records in it."""
        return open_store(self.image_settings, encoder, records)

    def train(self, *, resume: bool = False) -> Progress:
        """Train, and leave the best model in `folder/model`. Only the splits `train` and `val` are used.

        Under torchrun all processes train one model. The first of them draws or encodes what is missing on disk
        while the others wait.

        Raises:
            UserError: another process trains in the run's folder; the disk is full before the first update; the data
                are not those of the checkpoint; and as `_find_checkpoint` and `_load_start_weights`.
        """
        self.world = join(self.device)
        advice = "free some, and go on with --resume if there is a checkpoint"
        with (
            explain_full_disk(self.folder, advice=advice),
            self.world.explain_lost_process(),
            self._run_lock(),
        ):
            return self._load_and_train(resume)

    def _run_lock(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other runs out of the run's folder; held by the first process."""
        if not self.world.first:
            return contextlib.nullcontext()
        return folder_lock(self.folder, advice="wait until it has ended, or choose another name=...")

    def _load_and_train(self, resume: bool) -> Progress:
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:  # torchrun repeats it without --resume
            resume = has_checkpoint(self.folder)
        with self._holding_writes(resume):
            checkpoint = self._find_checkpoint(resume)
            with self._first_process_first():
                splits = self._load_splits()
                captions = (caption for record in splits["train"] for caption in record.captions)
                vocabulary = self.config.vocabulary.build(captions, tokenizer=self.config.text.tokenizer)
                fingerprints = caption_fingerprints(vocabulary, splits)
                self._refuse_other_data(checkpoint, fingerprints)
                captioner = self.build_captioner(vocabulary)
                if self.config.start and checkpoint is None:
                    self._load_start_weights(self.config.start, captioner)
                source = self.image_source(captioner.encoder, [*splits["train"], *splits["val"]])
                readable = {split: source.readable(records) for split, records in splits.items()}
                fingerprints |= content_fingerprints(readable, source.contents)
                self._refuse_other_data(checkpoint, fingerprints)
        data = self._training_data(source, readable["train"], readable["val"], vocabulary)
        if self.world.first:
            self._write_run_files(vocabulary)
        self._log_sizes(data, captioner, source)
        identity = Identity(self.config.decisive, fingerprints)
        return self._train(captioner, data, checkpoint, identity)

    def _load_splits(self) -> dict[str, list[ImageRecord]]:
        """The records of train and val, after the checks that `captioning prepare` makes as well."""
        dataset = self.config.dataset
        self.log(f"loading the {dataset.kind} data set")
        with notes_to(self.log):
            collection = self.load_dataset()
        training, validation = training_splits(collection, where=dataset.root)
        if self.world.first:
            datasets.refuse_equal_files(dataset, collection)
        return {"train": training, "val": validation}

    def _refuse_other_data(self, checkpoint: Path | None, fingerprints: Mapping[str, Fingerprint]) -> None:
        if checkpoint:
            refuse_other_data(checkpoint, read_identity(checkpoint), fingerprints)

    def _find_checkpoint(self, resume: bool) -> Path | None:
        """The checkpoint to resume from.

        Raises:
            UserError: the run exists but `resume` is False, or vice versa; or its settings were others.
        """
        if resume:
            checkpoint = latest(self.folder, log=self.log)
            refuse_other_settings(checkpoint, read_identity(checkpoint), self.config.decisive)
            return checkpoint
        if has_checkpoint(self.folder):
            raise UserError(
                f"{self.folder}: this run exists; continue it with --resume, or choose another name=..."
            )
        return None

    @contextlib.contextmanager
    def _first_process_first(self) -> Iterator[None]:
        """The first process runs the block alone; the others wait until it has finished."""
        if not self.world.first:
            self.world.wait()
        yield
        if self.world.first:
            self.world.wait()

    def _load_start_weights(self, start: str, captioner: Captioner) -> None:
        """Fill `captioner` with the weights of a finished run or a model folder.

        Raises:
            UserError: it is neither, or has another vocabulary, preprocessing or architecture.
        """
        folder = Path(start) / "model" if (Path(start) / "model").is_dir() else Path(start)
        model = Captioner.open(folder)
        if model.vocabulary.fingerprint != captioner.vocabulary.fingerprint:
            raise UserError(
                f"start: the vocabulary of {folder} ({len(model.vocabulary):,} {model.vocabulary.unit}) is not that of "
                f"these training captions ({len(captioner.vocabulary):,} {captioner.vocabulary.unit}); use that run's "
                f"dataset, text and vocabulary.min_count={model.vocabulary.min_count}"
            )
        if model.config.preprocessing != self.config.preprocessing:
            raise UserError(
                f"start: {folder} was trained with other preprocessing than this config's; use that run's"
            )
        load_weights(captioner, folder / "model.safetensors")
        self.log(f"starting from the weights of {folder}")

    def _training_data(
        self,
        source: ImageSource,
        training: Sequence[ImageRecord],
        validation: Sequence[ImageRecord],
        vocabulary: Vocabulary,
    ) -> Data:
        """Images and encoded captions of readable records."""
        config = self.config
        captions, validation_captions = (
            EncodedCaptions.from_records(records, vocabulary, max_length=config.vocabulary.max_length)
            for records in (training, validation)
        )
        return Data(
            ids=PackedStrings(record.image_id for record in training),
            captions=captions,
            images=source.images(training, training=True),
            validator=Validator(
                validation,
                source.images(validation, training=False),
                validation_captions,
                search=config.search,
                tokenizer=config.text.tokenizer,
                size=config.training.validation_images,
                more_metrics=[phase.metric for phase in (config.training, *config.phases)],
            ),
        )

    def _write_run_files(self, vocabulary: Vocabulary) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "config.yaml", yaml.safe_dump(self.config.as_json(), sort_keys=False))
        write_json(self.folder / "env.json", environment(self.device))
        vocabulary.save(str(self.folder / "vocabulary.json"))

    def _log_sizes(self, data: Data, captioner: Captioner, source: ImageSource) -> None:
        decoder = count_parameters(captioner.decoder)["parameters"] / 1e6
        trainable = count_parameters(captioner)["trainable"] / 1e6
        self.log(
            f"{len(data.ids):,} images with {data.captions.image_offsets[-1]:,} captions for training, "
            f"{len(data.validator.records):,} images for validation; {len(captioner.vocabulary):,} "
            f"{captioner.vocabulary.unit}; "
            f"decoder with {decoder:.2f} M parameters, {trainable:.2f} M trained; images from {source.location}"
        )
        if source.noted:
            self.log(f"{describe_notes(source.noted)}; {self.folder / NOTES} lists them")
        if data.captions.num_truncated:
            limit = self.config.vocabulary.max_length
            self.log(
                f"{data.captions.num_truncated} captions truncated to {limit} {captioner.vocabulary.unit}"
            )

    def _train(
        self, captioner: Captioner, data: Data, checkpoint: Path | None, identity: Identity
    ) -> Progress:
        config = self.config
        tracker = None
        if self.world.first:
            tracker = Tracker(
                config.tracking,
                self.folder,
                run_config=config.as_json(),
                resume_step=read_step(checkpoint) if checkpoint else None,
            )
        try:
            with Signals() as signals:
                run = Run(
                    folder=self.folder,
                    tracker=tracker,
                    seed=config.seed,
                    identity=identity,
                    model_card=lambda progress, scores: model_card(
                        config.as_json(), captioner, progress, scores
                    ),
                    log=self.log,
                    world=self.world,
                    device=self.device,
                    signals=signals,
                )
                progress = train(captioner, data, (config.training, *config.phases), run, resume=checkpoint)
        except BaseException:
            if tracker:
                tracker.finish(exit_code=1)
            raise
        if tracker:
            tracker.finish()
        return progress
