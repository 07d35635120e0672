"""`ExperimentConfig`: YAML and command line overrides, typed and checked, with one-sentence errors."""

from __future__ import annotations

import difflib
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from captioning.datasets import DatasetConfig, ShapesConfig
from captioning.errors import UserError
from captioning.generation import BeamConfig, SearchConfig
from captioning.images.augmentation import AugmentationConfig
from captioning.images.preprocessing import Preprocessing
from captioning.loaders.feature_store import FeaturesConfig
from captioning.models.decoders import DecoderConfig, SoftAttentionLSTMConfig
from captioning.models.encoders import EncoderConfig, RegionsConfig
from captioning.text.vocabulary import VocabularyConfig
from captioning.training import TrainingConfig
from captioning.training.config import LATER
from captioning.training.tracking import TrackingConfig
from captioning.utils.files import fingerprint, read_text


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
