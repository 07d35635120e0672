"""`ExperimentConfig`: the settings of a run, read from YAML and command line overrides."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from captioning.datasets import DatasetConfig, ShapesConfig
from captioning.errors import UserError
from captioning.generation import BeamConfig, SearchConfig
from captioning.images.augmentation import AugmentationConfig
from captioning.images.preprocessing import Preprocessing
from captioning.loaders.feature_store import FeaturesConfig
from captioning.models.decoders import DecoderConfig, SoftAttentionLSTMConfig
from captioning.models.encoders import EncoderConfig
from captioning.text.tokenizers import TextConfig
from captioning.text.vocabulary import VocabularyConfig
from captioning.training import TrainingConfig
from captioning.training.tracking import TrackingConfig
from captioning.utils.files import fingerprint
from captioning.utils.parsing import parse_yaml_value
from captioning.utils.paths import shipped_configs
from captioning.utils.validation import RunName, Seed, dump, read_yaml, validate

NOT_IN_FINGERPRINT = ("name", "runs", "tracking", "device")
"""Settings that don't influence a run's result: where it is written and tracked, and on what device it runs."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """All settings of a run.

    Attributes:
        start: a finished run or a model folder whose weights initialise the model; null: new weights.
        phases: further phases of training after `training`, each starting from the best model so far.
    """

    __pydantic_config__ = {"extra": "forbid"}
    name: RunName
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    runs: str = "runs"
    dataset: DatasetConfig = field(default_factory=ShapesConfig)
    encoder: EncoderConfig
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    augmentation: AugmentationConfig | None = None
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    text: TextConfig = field(default_factory=TextConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    decoder: DecoderConfig = field(default_factory=SoftAttentionLSTMConfig)
    search: SearchConfig = field(default_factory=BeamConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    start: str | None = None
    phases: tuple[TrainingConfig, ...] = ()
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        lengths = {  # the decoder also reads `<start>`; a search never feeds its last word back
            "vocabulary.max_length": self.vocabulary.max_length + 1,
            "search.max_length": self.search.max_length,
        }
        for number, phase in enumerate((self.training, *self.phases)):
            if phase.self_critical:
                section = f"phases.{number - 1}" if number else "training"
                lengths[f"{section}.self_critical.max_length"] = phase.self_critical.max_length
        limit = self.decoder.max_positions
        for key, length in lengths.items():
            if limit is not None and length > limit:
                raise ValueError(
                    f"the decoder reads no more than {limit} words, but with {key} up to {length}; "
                    f"lower {key}, or raise decoder.max_length"
                )
        if self.encoder.precomputed and (self.features.flip or self.augmentation):
            raise ValueError("precomputed regions cannot be mirrored or augmented; remove features.flip")

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name

    def as_json(self) -> dict[str, Any]:
        """The settings as plain values, which `parse` reads."""
        return dump(self)

    @property
    def decisive(self) -> dict[str, Any]:
        """The settings that decide the result, as plain values."""
        return {key: value for key, value in self.as_json().items() if key not in NOT_IN_FINGERPRINT}

    @property
    def fingerprint(self) -> str:
        """Hash of the settings that decide the result."""
        return fingerprint(self.decisive)


def read_config(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, allow_code: bool = False
) -> ExperimentConfig:
    """Read an experiment's YAML file and apply `section.key=value` overrides, whose values are YAML.

    Args:
        path: a file, or the name of a config that comes with the package, such as `flickr8k_lstm`.
        allow_code: import a `kind` outside the package ("my_module:MyConfig"); for configs of the user's own.

    Raises:
        UserError: there is no such file, its YAML is broken, or a key or value is wrong; names the file or the
            override that the mistake came with.
    """
    path = find_config(path)
    values = read_yaml(path)
    for override in overrides:
        _apply(override, values)
    try:
        return parse(values, where="", allow_code=allow_code)
    except UserError as error:
        source = _source_of_error(str(error), path, overrides, allow_code=allow_code)
        raise UserError(f"{source}: {error}") from error.__cause__


def _source_of_error(message: str, path: Path, overrides: Sequence[str], *, allow_code: bool) -> str:
    """The file, or the first of the overrides with which the settings give this error."""
    values = read_yaml(path)
    for count in range(len(overrides)):
        try:
            parse(values, where="", allow_code=allow_code)
        except UserError as error:
            if str(error) == message:
                return repr(overrides[count - 1]) if count else str(path)
        _apply(overrides[count], values)
    return repr(overrides[-1]) if overrides else str(path)


def find_config(path: str | os.PathLike[str]) -> Path:
    """The file `path`, or the shipped config of that name. Raises UserError, with the nearest names, if neither."""
    folder, given = shipped_configs(), Path(path)
    shipped = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if not given.exists() and given.parent == Path("configs") and given.stem in shipped:
        return shipped[given.stem]  # the documentation's commands, in a folder without configs/
    if given.exists() or given.name != str(path) or given.suffix:
        return given  # reading it raises the error if there is no such file
    if given.name in shipped:
        return shipped[given.name]
    near = difflib.get_close_matches(given.name, shipped, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"shipped are {', '.join(shipped)}"
    raise UserError(f"{path}: neither a file nor a config in {folder}; {hint}")


def _apply(override: str, values: dict[str, Any]) -> None:
    """Set the value of one override in `values`."""
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise UserError(f"{override!r}: an override is written section.key=value")
    value = parse_yaml_value(text, where=repr(override))
    *parents, name = key.split(".")
    section = values
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise UserError(f"{override!r}: {parent} is a value, not a section")
    section[name] = value


def parse(values: Mapping[str, Any], *, where: str, allow_code: bool = False) -> ExperimentConfig:
    """Settings from plain values. Raises UserError, with the first key that is wrong; see `validate`."""
    config: ExperimentConfig = validate(ExperimentConfig, values, where=where, allow_code=allow_code)
    given = {key: getattr(config.preprocessing, key) for key in values.get("preprocessing") or ()}
    preprocessing = replace(config.encoder.default_preprocessing(), **given)
    return replace(config, preprocessing=preprocessing)
