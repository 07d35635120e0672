"""An experiment: YAML and overrides -> settings that are typed and checked, then built. The only room that sees all."""

from __future__ import annotations

import difflib
import json
import os
import platform
import subprocess
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torchvision
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from captioning import datasets, encoders
from captioning.batches import EncodedCaptions, Images, check_trainable
from captioning.captioner import Captioner, count_parameters
from captioning.datasets import DatasetConfig, ShapesConfig
from captioning.decoders import DecoderConfig, SoftAttentionLSTMConfig
from captioning.encoders import EncoderConfig
from captioning.errors import UserError
from captioning.features import FeatureStore, StoredImages, build_store, store_fingerprint
from captioning.files import fingerprint, read_text, write_json, write_text
from captioning.images import AugmentationConfig, PixelImages, Preprocessing
from captioning.records import Collection, ImageRecord
from captioning.search import BeamConfig, SearchConfig
from captioning.tracking import Tracker, TrackingConfig
from captioning.training import Data, TrainingConfig, train
from captioning.training.checkpoint import Progress
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

    `flip` also stores the features of the mirrored image and trains on either, at random.
    """

    __pydantic_config__ = {"extra": "forbid"}
    use: Literal["auto", "never"] = "auto"
    root: str = "features"
    dtype: Literal["float16", "float32"] = "float16"
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything that decides a run's result, and where the run goes."""

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
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name

    def as_json(self) -> dict[str, Any]:
        return TypeAdapter(ExperimentConfig).dump_python(self, mode="json")

    @property
    def fingerprint(self) -> str:
        """Of what decides the result: where the run is written and tracked, and on what device, is left out."""
        left_out = ("name", "runs", "tracking", "device")
        return fingerprint({key: value for key, value in self.as_json().items() if key not in left_out})


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
    return f"{key}: {problem['msg'][0].lower() + problem['msg'][1:]}, got {problem['input']!r}"


def _inner(config: Any, part: str) -> tuple[Any, bool]:
    """What `part` of an error's place leads to (a config class, or those of a union), and whether a user wrote it."""
    if isinstance(config, list):  # a union: pydantic names the kind, which in the file is a value and no key
        return next((option for option in config if option.kind == part), None), False
    if not is_dataclass(config):
        return None, True
    hint = typing.get_type_hints(config).get(part)
    options = [option for option in typing.get_args(hint) or (hint,) if is_dataclass(option)]
    return (options[0] if len(options) == 1 else options), True


def choose_device(name: str) -> torch.device:
    """Raises UserError where `cuda` is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda asked for, but torch finds no CUDA device here; use device=cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Experiment:
    """A run: its settings, the data, the model. Built in the order in which mistakes are cheap to find."""

    def __init__(self, config: ExperimentConfig, *, say: Any = print):
        self.config, self.say = config, say
        self.folder = config.folder
        self.device = choose_device(config.device)

    def collect(self) -> Collection:
        """The data set's records; what was passed over is listed in the run's `skipped.csv`."""
        return datasets.load(self.config.dataset, skipped_csv=self.folder / "skipped.csv")

    def use_store(self) -> bool:
        """Whether images are encoded once, ahead: the encoder is frozen and pixels are not augmented."""
        config = self.config
        return config.features.use == "auto" and encoders.is_frozen(config.encoder) and config.augmentation is None

    def images(self, captioner: Captioner, records: Sequence[ImageRecord], *, training: bool) -> Images:
        """Where the images of `records` come from: the feature store (filled on first use), or their files."""
        config = self.config
        if not self.use_store():
            return PixelImages(
                [record.path for record in records],
                config.preprocessing,
                augmentation=config.augmentation if training else None,
                seed=config.seed,
            )
        return StoredImages(
            self.store(captioner, records),
            [record.image_id for record in records],
            seed=config.seed,
            views=training,
        )

    def store(self, captioner: Captioner, records: Sequence[ImageRecord]) -> FeatureStore:
        """The feature store with these records in it."""
        config = self.config
        key = store_fingerprint(captioner.encoder, config.preprocessing)
        root = Path(config.dataset.root).name or "data"
        folder = Path(config.features.root) / f"{root}-{fingerprint([key, config.features.dtype, config.features.flip])}"
        return build_store(
            records,
            captioner.encoder,
            config.preprocessing,
            folder,
            dtype=config.features.dtype,
            flip=config.features.flip,
            device=self.device,
        )
