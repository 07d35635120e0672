"""Finished runs and files of captions -> systems to be compared. Reads files only; no torch."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from captioning import datasets
from captioning.comparison.results import System, SystemRun
from captioning.datasets import DatasetConfig, of_split
from captioning.datasets.references import match_ids, read_references
from captioning.errors import UserError
from captioning.records import ImageId, ImageRecord, read_results
from captioning.utils.files import fingerprint, read_text
from captioning.utils.validation import validate

LEFT_OUT = ("name", "seed", "runs", "tracking", "device")
"""Settings in which runs of one system differ."""


class Settings(NamedTuple):
    """What a run's config.yaml says, as far as a comparison needs it."""

    folder: Path
    values: dict[str, Any]

    @property
    def seed(self) -> int | None:
        return self.values.get("seed")

    @property
    def metric(self) -> str:
        return str(self.values["training"]["metric"])

    @property
    def system(self) -> str:
        """The same for runs that differ in their seed only."""
        return fingerprint({key: value for key, value in self.values.items() if key not in LEFT_OUT})


def read_settings(folder: Path) -> Settings:
    """Raises UserError where `folder` is not a run's."""
    if not (folder / "config.yaml").is_file() or not (folder / "metrics.jsonl").is_file():
        raise UserError(f"{folder}: not the folder of a run; captioning train makes one in runs/NAME")
    try:
        return Settings(folder, yaml.safe_load(read_text(folder / "config.yaml")))
    except yaml.YAMLError as error:
        raise UserError(f"{folder / 'config.yaml'}: broken YAML ({str(error).splitlines()[0]})") from None


def read_run(settings: Settings, split: str, *, flops_per_token: float | None = None) -> SystemRun:
    """A run's captions of `split` and the record of its training.

    Raises:
        UserError: there are no captions of that split.
    """
    folder = settings.folder
    file = folder / f"predictions_{split}.json"
    if not file.is_file():
        raise UserError(f"{file}: no such file; make it by captioning evaluate {folder} --split {split}")
    lines = metrics_lines(folder)
    curve = learning_curve(lines, settings.metric, flops_per_token=flops_per_token)
    speeds = [line for line in lines if "speed/captions_per_s" in line]
    facts = {}
    for name in ("captions_per_s", "tokens_per_s", "waiting_share"):
        values = sorted(line[f"speed/{name}"] for line in speeds)
        if values:
            facts[name] = values[len(values) // 2]
    if speeds and "speed/seconds" in speeds[-1]:
        facts["seconds"] = sum(line["speed/seconds"] for line in speeds)
        facts["memory_mb"] = max(line["speed/memory_mb"] for line in speeds)
    return SystemRun(folder.name, settings.seed, _captions(file), curve, facts)


def _captions(file: str | Path) -> dict[ImageId, str]:
    return {result.image_id: result.caption for result in read_results(str(file))}


def metrics_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's timings.jsonl and metrics.jsonl by step; one torn by a crash is left out.

    Older runs have their speed in metrics.jsonl.
    """
    lines = []
    for name in ("timings.jsonl", "metrics.jsonl"):  # in this order: an epoch's seconds before its scores
        if not (folder / name).is_file():
            continue
        for line in read_text(folder / name).splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
    return sorted(lines, key=lambda line: line["step"])


def learning_curve(
    lines: Sequence[Mapping[str, Any]], metric: str, *, flops_per_token: float | None
) -> list[dict[str, float]]:
    """A point a validation: step, score, loss; seconds and tokens so far; teraflop where FLOPs are known.

    Runs of before seconds were recorded have points without them.
    """
    points = []
    seconds: float | None = 0.0
    tokens = 0.0
    for line in lines:
        if "speed/tokens_per_s" in line:
            spent = line.get("speed/seconds")
            seconds = None if spent is None or seconds is None else seconds + spent
            tokens += line["speed/tokens_per_s"] * (spent or 0.0)
        if f"val/{metric}" in line:
            point = {"step": line["step"], "score": line[f"val/{metric}"], "loss": line["val/loss"]}
            if seconds:
                point |= {"seconds": seconds, "tokens": tokens}
                if flops_per_token:
                    point["teraflop"] = tokens * flops_per_token / 1e12
            points.append(point)
    return points


def records_of(settings: Sequence[Settings], split: str) -> list[ImageRecord]:
    """The split's images with their references.

    Raises:
        UserError: the runs are of different data sets, or there is no such split.
    """
    kept = {json.dumps(each.values["dataset"], sort_keys=True) for each in settings}
    if len(kept) > 1:
        names = ", ".join(each.folder.name for each in settings[:4])
        raise UserError(
            f"the runs {names} were made with different dataset settings; compare them on the same data"
        )
    config: DatasetConfig = validate(
        DatasetConfig,
        settings[0].values["dataset"],
        where=str(settings[0].folder / "config.yaml"),
        section="dataset",
    )
    return of_split(datasets.load(config), split)


def systems_of(settings: Sequence[Settings], split: str) -> list[System]:
    """Runs that differ in their seed only are one system, named after the first without its seed."""
    groups: dict[str, list[Settings]] = {}
    for each in settings:
        groups.setdefault(each.system, []).append(each)
    systems: list[System] = []
    for group in groups.values():
        seeds = [each.seed for each in group]
        if len(set(seeds)) < len(seeds):
            raise UserError(f"{group[0].folder} and {group[1].folder} are runs of the same settings and seed")
        name = (
            re.sub(r"[-_]?seed[-_]?\d+$", "", group[0].folder.name)
            if len(group) > 1
            else group[0].folder.name
        )
        if any(name == system.name for system in systems):
            name = str(group[0].folder)
        systems.append(System(name, name, [read_run(each, split) for each in group]))
    return systems


def bare_systems(
    files: Sequence[str], references: str, *, split: str | None
) -> tuple[list[System], list[ImageRecord], str]:
    """Systems that are each one file of captions, the images of their references, and the split's name."""
    found = read_references(references, split=split)
    systems = []
    stems = [Path(file).stem for file in files]
    for file, stem in zip(files, stems, strict=True):
        name = stem if stems.count(stem) == 1 else str(Path(file).with_suffix(""))
        captions, _ = match_ids(list(_captions(file).items()), found.records)
        systems.append(System(name, name, [SystemRun(name, None, dict(captions))]))
    return systems, found.records, found.split
