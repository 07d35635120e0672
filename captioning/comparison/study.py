"""Study files: YAML that lists the decoders, seeds and base experiment of a comparison."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from captioning.config import find_config
from captioning.errors import UserError
from captioning.utils.parsing import parse_yaml_value
from captioning.utils.validation import RunName, Seed, read_yaml, validate


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """One system of a study.

    Attributes:
        decoder: the decoder section of its experiment.
        overrides: further changes to the base experiment.
        label: its name in the report (default: its key in the study).
    """

    __pydantic_config__ = {"extra": "forbid"}
    decoder: dict[str, Any]
    overrides: dict[str, Any] = field(default_factory=dict)
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """The quantity in which all decoders are made equal, and its value.

    Attributes:
        by: "parameters" of the decoder, or "flops" of its matrix products when training on one caption of the
            training split's mean length, including the caption's share of the image's regions (`models.cost`).
        target: a number, or the name of a decoder that keeps its size.
        tolerance: largest relative deviation from the target; beyond it the plan is refused.
    """

    __pydantic_config__ = {"extra": "forbid"}
    by: Literal["parameters", "flops"] = "parameters"
    target: int | str
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.02


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The contents of a study's YAML file.

    Attributes:
        base: an experiment's YAML file; `overrides` change it for all systems.
        learning_rates: tried for every decoder with `search_epochs` epochs and the first seed; all seeds then use
            the rate with the best validation score. Empty: the experiment's own rate.
        lengths: caption lengths of the data set `shapes`, in words. Every decoder and seed is trained on each
            length; learning rates are tried on `search_length` (default: the middle one).
        length_epochs: epochs for some of the lengths, the same for all systems. The study compares systems at the
            same length, never one length with another.
        split: the split that is captioned and reported on.
    """

    __pydantic_config__ = {"extra": "forbid"}
    name: RunName
    base: str
    decoders: dict[str, SystemConfig]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    runs: str = "runs"
    overrides: dict[str, Any] = field(default_factory=dict)
    match: MatchConfig | None = None
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    search_epochs: Annotated[int, Field(ge=1)] = 2
    split: str = "test"
    lengths: tuple[int, ...] = ()
    search_length: int | None = None
    length_epochs: dict[int, Annotated[int, Field(ge=1)]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name

    def label(self, system: str) -> str:
        return self.decoders[system].label or system


def read_study(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study's YAML file.

    Its `base` is relative to the file's folder or, if there is no such file, to the working directory.

    Args:
        path: a file, or the name of a study that comes with the package, such as `study_shapes`.
        overrides: `section.key=value` changes to the base experiment, for all systems.

    Raises:
        UserError: broken YAML, an unknown key or a wrong value.
    """
    path = find_config(path)
    study: StudyConfig = validate(StudyConfig, read_yaml(path), where=str(path))
    _check(study, path)
    if study.lengths and study.search_length is None:
        study = replace(study, search_length=sorted(study.lengths)[len(study.lengths) // 2])
    beside = path.parent / study.base
    changes = study.overrides
    for override in overrides:
        changes = merge(changes, _nested(override))
    return replace(study, base=str(beside if beside.is_file() else study.base), overrides=changes)


def _check(study: StudyConfig, path: str | os.PathLike[str]) -> None:
    if not study.decoders or len(set(study.seeds)) < len(study.seeds):
        raise UserError(f"{path}: a study needs at least one decoder, and each seed once")
    for name in (study.name, *study.decoders):
        if not name or set(name) & set("/\\ \n") or name.startswith("."):
            raise UserError(f"{path}: {name!r} cannot be a folder's name; use letters, digits, _ and -")
    if study.match and isinstance(study.match.target, str) and study.match.target not in study.decoders:
        names = ", ".join(study.decoders)
        raise UserError(f"{path}: match.target {study.match.target!r} is none of its decoders ({names})")


def _nested(override: str) -> dict[str, Any]:
    """`a.b=value` as {"a": {"b": value}}; the value is YAML."""
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise UserError(f"{override!r}: an override is written section.key=value")
    value = parse_yaml_value(text, where=repr(override))
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` updated with `changes` section by section; a section with another `kind` replaces the old one."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            other_kind = "kind" in value and value["kind"] != old.get("kind")
            result[key] = dict(value) if other_kind else merge(old, value)
        else:
            result[key] = value
    return result
