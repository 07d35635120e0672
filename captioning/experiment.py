"""An experiment: YAML and overrides -> settings that are typed and checked, then built. The only room that sees all."""

from __future__ import annotations

import difflib
import json
import os
import platform
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torchvision
import yaml
from pydantic import Field, TypeAdapter, ValidationError
from tqdm import tqdm

from captioning import datasets
from captioning.batches import (
    EncodedCaptions,
    Images,
    PixelImages,
    RegionImages,
    ShardFeatures,
    StoredImages,
    sided,
)
from captioning.captioner import Captioner, count_parameters, load_weights
from captioning.compact import Compact
from captioning.datasets import DatasetConfig, ShapesConfig, of_split
from captioning.datasets.checks import write_skipped
from captioning.datasets.shards import ShardsConfig, read_index
from captioning.decoders import DecoderConfig, SoftAttentionLSTMConfig
from captioning.encoders import Encoder, EncoderConfig, RegionsConfig
from captioning.encoders.region_files import file_of, list_files
from captioning.errors import UserError
from captioning.features import FeatureStore, Origin, build_store, refuse_other_origin
from captioning.files import fingerprint, read_text, write_json, write_text
from captioning.images import AugmentationConfig, BadImage, Preprocessing, read_image
from captioning.metrics.evaluation import code_version
from captioning.records import Collection, ImageRecord, Skip
from captioning.search import BeamConfig, SearchConfig
from captioning.tracking import Tracker, TrackingConfig
from captioning.training import Data, Run, TrainingConfig, train
from captioning.training.checkpoint import Progress, begun, latest, steps_done
from captioning.training.config import LATER
from captioning.training.faults import Signals
from captioning.training.parallel import World, join, local_device
from captioning.training.validation import Validator
from captioning.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """Words seen `min_count` times in the training split; captions are cut to `max_length` words in training."""

    __pydantic_config__ = {"extra": "forbid"}
    min_count: Annotated[int, Field(ge=1)] = 5
    max_length: Annotated[int, Field(ge=1)] = 50


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """The feature store. `use: auto` is yes whenever the encoder is frozen and pixels are not augmented.

    `flip` also stores the features of the mirrored image and trains on either, at random; an image of which a
    caption says left or right is never mirrored.
    """

    __pydantic_config__ = {"extra": "forbid"}
    use: Literal["auto", "never"] = "auto"
    root: str = "features"
    dtype: Literal["float16", "float32"] = "float16"
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything that decides a run's result, and where the run goes.

    Attributes:
        start: a finished run, or a model folder, whose weights the first phase begins with (null: new ones).
        phases: trained after `training`, each from the best model so far.
    """

    __pydantic_config__ = {"extra": "forbid"}
    name: str
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    runs: str = "runs"
    dataset: DatasetConfig = field(default_factory=ShapesConfig)
    encoder: EncoderConfig
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    augmentation: AugmentationConfig | None = None
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    decoder: DecoderConfig = field(default_factory=SoftAttentionLSTMConfig)
    search: SearchConfig = field(default_factory=BeamConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    start: str | None = None
    phases: tuple[TrainingConfig, ...] = ()
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        longest = self.decoder.longest
        reads = {  # `<start>` is read as well; nothing is read behind a search's last word
            "vocabulary.max_length": self.vocabulary.max_length + 1,
            "search.max_length": self.search.max_length,
        }
        for number, phase in enumerate((self.training, *self.phases)):
            if phase.self_critical:
                place = f"phases.{number - 1}" if number else "training"
                reads[f"{place}.self_critical.max_length"] = phase.self_critical.max_length
        for key, count in reads.items():
            if longest is not None and count > longest:
                raise ValueError(
                    f"the decoder reads no more than {longest} words, but with {key} up to {count}; "
                    f"lower {key}, or raise decoder.max_length"
                )
        if isinstance(self.encoder, RegionsConfig) and (self.features.flip or self.augmentation):
            raise ValueError("regions that others computed cannot be mirrored; leave out features.flip")

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name

    def as_json(self) -> dict[str, Any]:
        return TypeAdapter(ExperimentConfig).dump_python(self, mode="json")

    @property
    def fingerprint(self) -> str:
        """Of what decides the result: where the run is written and tracked, and on what device, is left out."""
        left_out = ("name", "runs", "tracking", "device")
        values = {key: value for key, value in self.as_json().items() if key not in left_out}
        later = [(phase, LATER) for phase in (values["training"], *values["phases"])]
        for section, names in [*later, (values["encoder"], ("recompute",))]:
            for name in names:
                if not section.get(name):
                    section.pop(name, None)
        return fingerprint(values)


def read_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The experiment of a YAML file, with `a.b=value` overrides (values are YAML).

    Raises:
        UserError: broken YAML, an unknown key (with a near one), a wrong type or a value out of range.
    """
    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        place = f" at line {where.line + 1}, column {where.column + 1}" if where else ""
        raise UserError(f"{path}: broken YAML{place}; only plain values are read") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values at the root, found {type(values).__name__}")
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise UserError(f"{override!r}: an override is written section.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"{override!r}: the value is not YAML") from None
        *parents, name = key.split(".")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise UserError(f"{override!r}: {parent} is a value, not a section")
        section[name] = value
    return parse(values, where=str(path))


def parse(values: Mapping[str, Any], *, where: str) -> ExperimentConfig:
    """Checked settings from plain values. Raises UserError naming the first key that is wrong."""
    try:
        return TypeAdapter(ExperimentConfig).validate_python(dict(values))
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """One sentence for the first thing that is wrong."""
    problem = error.errors(include_url=False)[0]
    place = [str(part) for part in problem["loc"]]
    config: Any = ExperimentConfig
    shown, names = [], [each.name for each in fields(ExperimentConfig)]
    for part in place[:-1]:
        config, visible = _inner(config, part)
        if visible:
            shown.append(part)
        names = [each.name for each in fields(config)] if is_dataclass(config) else []
    key = ".".join([*shown, place[-1]]) if place else "settings"
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(place[-1], names, n=1)
        hint = f"did you mean {'.'.join([*shown, near[0]])}?" if near else f"there are {', '.join(names)}"
        return f"{key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    if problem["type"] == "value_error":
        return f"{key}: {problem['ctx']['error']}"  # which names the values
    return f"{key}: {problem['msg'][0].lower() + problem['msg'][1:]}, got {problem['input']!r}"


def _inner(config: Any, part: str) -> tuple[Any, bool]:
    """What `part` of an error's place leads to (a config class, or those of a union), and whether a user wrote it."""
    if isinstance(config, list):  # a union: pydantic names the kind, which in the file is a value and no key
        return next((option for option in config if option.kind == part), None), False
    if not is_dataclass(config) or part.isdigit():  # a number: which of several of that class
        return config if part.isdigit() else None, True
    hint = typing.get_type_hints(config).get(part)
    options = [option for option in typing.get_args(hint) or (hint,) if is_dataclass(option)]
    return (options[0] if len(options) == 1 else options), True


def choose_device(name: str) -> torch.device:
    """Raises UserError where `cuda` is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda asked for, but torch finds no CUDA device here; use device=cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return local_device(torch.device(name))


class Experiment:
    """A run: its settings, its data, its model; built in the order in which mistakes are cheap to find."""

    def __init__(self, config: ExperimentConfig, *, say: Callable[[str], None] = print):
        self.config, self._say = config, say
        self.folder = config.folder
        self.device = choose_device(config.device)
        self.world = World()

    def say(self, line: str) -> None:
        """Tell a person, and the run's `train.log`; the first process of several does."""
        if not self.world.first:
            return
        self._say(line)
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
        if isinstance(config.encoder, RegionsConfig):
            return Source(config, self._with_regions(records, config.encoder), None)
        augmented = config.augmentation is not None and not config.augmentation.nothing
        if isinstance(config.dataset, ShardsConfig):
            holds = read_index(config.dataset.root)["holds"]
            if holds["kind"] == "features":
                self._refuse_other_features(holds, captioner.encoder, augmented=augmented)
                return Source(config, records, None, features=True)
            if config.features.use == "never" or augmented or not captioner.encoder.frozen:
                return Source(config, records, None)  # they were opened when the shards were written
        if config.features.use == "auto" and captioner.encoder.frozen and not augmented:
            store = self.store(captioner.encoder, records)
            return Source(config, [record for record in records if record.image_id in store], store)
        return Source(config, self._readable(records), None)

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
        self.say(f"begins with the weights of {folder}")

    def _refuse_other_features(self, holds: Mapping[str, Any], encoder: Encoder, *, augmented: bool) -> None:
        """Raises UserError where the features in the shards are not those that this model would compute."""
        config = self.config
        root = config.dataset.root
        if augmented or not encoder.frozen or (config.features.flip and holds["views"] < 2):
            raise UserError(
                f"{root}: holds features ({holds['views']} view(s) an image), which serve neither a trained encoder "
                "nor augmentation nor, with one view, features.flip; write shards of images"
            )
        refuse_other_origin(root, Origin(**holds["origin"]), Origin.of(encoder, config.preprocessing))

    def store(self, encoder: Encoder, records: Sequence[ImageRecord]) -> FeatureStore:
        """The feature store with these records in it."""
        if isinstance(self.config.encoder, RegionsConfig):
            raise UserError(
                f"encoder.folder {self.config.encoder.folder}: holds the regions; nothing to encode"
            )
        config = self.config.features
        origin = Origin.of(encoder, self.config.preprocessing)
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

    def _with_regions(self, records: Sequence[ImageRecord], config: RegionsConfig) -> list[ImageRecord]:
        files = list_files(config.folder)
        skipped = [
            Skip(item=str(record.image_id), reason=f"no file of regions in {config.folder}")
            for record in records
            if file_of(record, files) is None
        ]
        self._refuse_too_many(skipped, len(records))
        return [record for record in records if file_of(record, files) is not None]

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
            resume = begun(folder)
        if not resume and begun(folder):
            raise UserError(
                f"{folder}: there is a run already; go on with --resume, or choose another name=..."
            )
        kept = latest(folder, say=self.say) if resume else None
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
        self.say(
            f"{len(training):,} images with {encoded[0].first[-1]:,} captions to train on, {len(validation):,} to "
            f"validate with; {len(vocabulary):,} words; decoder of {sizes[0] / 1e6:.2f} M parameters, "
            f"{sizes[1] / 1e6:.2f} M trained; images from {source.where}"
        )
        if encoded[0].cut:
            self.say(f"{encoded[0].cut} captions cut to {config.vocabulary.max_length} words")
        data = Data(
            ids=Compact(record.image_id for record in training),
            captions=encoded[0],
            images=source.images(training, training=True),
            validator=Validator(
                validation,
                source.images(validation, training=False),
                encoded[1],
                search=config.search,
                size=config.training.validation_images,
            ),
        )
        tracker = None
        if self.world.first:
            tracker = Tracker(
                config.tracking,
                folder,
                run_config=config.as_json(),
                resume_step=steps_done(kept) if kept else None,
            )
        try:
            with Signals() as signals:
                run = Run(
                    folder=folder,
                    tracker=tracker,
                    seed=config.seed,
                    experiment=config.fingerprint,
                    card=lambda progress, scores: model_card(config, captioner, progress, scores),
                    say=self.say,
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


class Source:
    """The records whose images can be read, and how to read them."""

    def __init__(
        self,
        config: ExperimentConfig,
        records: Sequence[ImageRecord],
        store: FeatureStore | None,
        *,
        features: bool = False,
    ):
        self.config, self.store, self.features = config, store, features  # whether shards hold features
        self._ids = {record.image_id for record in records}

    @property
    def where(self) -> str:
        if isinstance(self.config.encoder, RegionsConfig):
            return f"the regions in {self.config.encoder.folder}"
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
        if isinstance(config.encoder, RegionsConfig):
            files = list_files(config.encoder.folder)
            paths = (file_of(record, files) for record in records)
            return RegionImages([path for path in paths if path], config.encoder)
        mirrored = training and config.features.flip
        fixed = sided(records) if mirrored or (training and config.augmentation) else None
        if self.features:
            return ShardFeatures(
                [record.path for record in records], seed=config.seed, mirrored=mirrored, sided=fixed
            )
        if self.store is not None:
            ids = [record.image_id for record in records]
            return StoredImages(self.store, ids, seed=config.seed, mirrored=mirrored, sided=fixed)
        return PixelImages(
            [record.path for record in records],
            config.preprocessing,
            augmentation=config.augmentation if training else None,
            seed=config.seed,
            sided=fixed,
        )


def environment(device: torch.device) -> dict[str, Any]:
    """What a run was made with: code, packages, machine."""
    return {
        "code": code_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
    }


def model_card(
    config: ExperimentConfig, captioner: Captioner, progress: Progress, scores: Mapping[str, float]
) -> str:
    """The model folder's README."""
    rows = "\n".join(f"| {name} | {100 * value:.1f} |" for name, value in scores.items() if name != "loss")
    return f"""# {config.name}

An image captioning model: {config.encoder.kind} encoder, `{config.decoder.kind}` decoder with
{count_parameters(captioner.decoder)["parameters"] / 1e6:.2f} M parameters, {len(captioner.vocabulary):,} words.
Trained on the training split of `{config.dataset.kind}`, seed {config.seed}, epoch {progress.best_epoch} of
{config.training.epochs}, chosen by {config.training.metric} on its validation split.

    python tools/caption.py IMAGE --model THIS_FOLDER

Scores on the validation split (times 100), on which this epoch was chosen: no test scores.
Search: `{json.dumps(config.as_json()["search"])}`.

| metric | score |
|---|---|
{rows}

It captions what its training data show, in their words, and repeats their mistakes and prejudices.
Code {code_version()}.
"""
