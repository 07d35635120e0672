"""Reading finished runs and caption files as systems to compare."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import TypedDict

from captioning import datasets
from captioning.comparison.results import System, SystemRun
from captioning.datasets import DatasetConfig, of_split
from captioning.datasets.checks import missing_images
from captioning.datasets.references import match_ids, read_references
from captioning.errors import UserError
from captioning.metrics.coco_names import read_signature
from captioning.records import ImageId, ImageRecord, read_results
from captioning.text.tokenizers import TextConfig, TokenizerName
from captioning.utils.files import fingerprint, read_json, read_text
from captioning.utils.validation import check_shape, read_yaml, validate

RUN_SPECIFIC = ("name", "seed", "runs", "tracking", "device")
"""Settings that may differ between the runs of one system."""


class TrainingValues(TypedDict):
    metric: str


class RunValues(TypedDict):
    """The part of a run's config.yaml that is read here."""

    training: TrainingValues
    dataset: dict[str, Any]


class TrainingLength(TypedDict):
    """The part of a checkpoint's progress.json that is read here."""

    step: int
    epochs_before: int
    epoch: int


class RunSettings(NamedTuple):
    """A run's folder and the values of its config.yaml."""

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
        """A fingerprint that is equal for runs that differ only in their seed."""
        return fingerprint({key: value for key, value in self.values.items() if key not in RUN_SPECIFIC})


def read_settings(folder: Path) -> RunSettings:
    """Raises UserError if `folder` is not a run's folder."""
    if not (folder / "config.yaml").is_file() or not (folder / "metrics.jsonl").is_file():
        raise UserError(f"{folder}: not the folder of a run; captioning train makes one in runs/NAME")
    file = folder / "config.yaml"
    values = check_shape(read_yaml(file), RunValues, where=file, advice="restore the run's own file")
    return RunSettings(folder, values)


def read_run(settings: RunSettings, split: str, *, metric: str) -> SystemRun:
    """A run's captions of `split`, its learning curve in `metric`, its logged speed, and how long it was trained.

    Raises:
        UserError: there are no captions of that split, or they were made by another search than the run's.
    """
    folder = settings.folder
    file, scores = (folder / f"{kind}_{split}.json" for kind in ("predictions", "scores"))
    advice = f"captioning evaluate {folder} --split {split}"
    if not file.is_file():
        raise UserError(f"{file}: no such file; make it by {advice}")
    if scores.is_file() and not same_search(read_signature(scores).get("search"), settings.values["search"]):
        raise UserError(f"{file}: made by another search than the run's own; make it anew by {advice}")
    lines = metrics_lines(folder)
    speeds = [line for line in lines if "speed/captions_per_s" in line]
    facts = _training_length(folder)
    for name in ("captions_per_s", "tokens_per_s", "waiting_share"):
        if values := _numbers(speeds, f"speed/{name}"):
            facts[name] = statistics.median_high(values)
    if seconds := _numbers(speeds, "speed/seconds"):
        facts["seconds"] = sum(seconds)
    if memory := _numbers(speeds, "speed/memory_mb"):
        facts["memory_mb"] = max(memory)
    curve = learning_curve(lines, metric)
    return SystemRun(folder.name, settings.seed, _captions(file), curve, facts)


def same_search(stored: Mapping[str, Any] | None, own: Mapping[str, Any]) -> bool:
    """Whether captions whose signature has the search `stored` were made by a run's own search.

    Settings that only one of them has are ignored: they are of another version.
    """
    return stored is not None and all(stored[key] == own[key] for key in stored.keys() & own.keys())


def _numbers(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The finite values of one name."""
    return [line[name] for line in lines if line.get(name) is not None]


def _training_length(folder: Path) -> dict[str, float]:
    """Updates and finished epochs by the run's last checkpoint; empty if it has been deleted."""
    file = folder / "checkpoints" / "last" / "progress.json"
    if not file.is_file():
        return {}
    progress = check_shape(
        read_json(file), TrainingLength, where=file, advice="delete the folder checkpoints"
    )
    return {"updates": progress["step"], "epochs": progress["epochs_before"] + progress["epoch"]}


def _captions(file: str | Path) -> dict[ImageId, str]:
    return {result.image_id: result.caption for result in read_results(str(file))}


def metrics_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's timings.jsonl and metrics.jsonl in order of steps; torn lines of a crash are skipped."""
    from captioning.training.tracking import (
        parse_metrics_line,
    )  # with torch, which files of captions do not need

    lines: list[dict[str, Any]] = []
    for name in ("timings.jsonl", "metrics.jsonl"):  # in this order: an epoch's seconds before its scores
        if not (folder / name).is_file():
            continue
        for line in read_text(folder / name).splitlines():
            if values := parse_metrics_line(line):
                lines.append(values)
    return sorted(lines, key=lambda line: line["step"])


def learning_curve(lines: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, float]]:
    """One point per validation: step, score, loss and, if recorded, the seconds and tokens of training so far."""
    points = []
    seconds: float | None = 0.0
    tokens = 0.0
    for line in lines:
        if (rate := line.get("speed/tokens_per_s")) is not None:
            elapsed = line.get("speed/seconds")
            seconds = None if elapsed is None or seconds is None else seconds + elapsed
            tokens += rate * (elapsed or 0.0)
        score, loss = line.get(f"val/{metric}"), line.get("val/loss")
        if score is not None and loss is not None:
            point = {"step": line["step"], "score": score, "loss": loss}
            if seconds:
                point |= {"seconds": seconds, "tokens": tokens}
            points.append(point)
    return points


def with_flops(run: SystemRun, flops_per_token: float) -> SystemRun:
    """`run` with the decoder's FLOPs so far ("teraflop") at each point of its learning curve that counts tokens."""
    curve = [
        {**point, "teraflop": point["tokens"] * flops_per_token / 1e12} if "tokens" in point else point
        for point in run.curve
    ]
    return run._replace(curve=curve)


def read_records(settings: Sequence[RunSettings], split: str) -> tuple[list[ImageRecord], list[str]]:
    """The split's images with their references, and a remark if some of its images are missing.

    Raises:
        UserError: the runs have different data sets, or there is no such split.
    """
    if len({json.dumps(run.values["dataset"], sort_keys=True) for run in settings}) > 1:
        names = ", ".join(run.folder.name for run in settings[:4])
        raise UserError(
            f"the runs {names} were made with different dataset settings; compare them on the same data"
        )
    config: DatasetConfig = validate(
        DatasetConfig,
        settings[0].values["dataset"],
        where=str(settings[0].folder / "config.yaml"),
        section="dataset",
    )
    collection = datasets.load(config)
    records = of_split(collection, split)
    missing = missing_images(collection, records[0].split)
    total = len(records) + missing
    remarks = [f"{missing:,} of the {total:,} images of {split} have no file: no score covers them."]
    return records, remarks if missing else []


def read_tokenizer(settings: Sequence[RunSettings]) -> TokenizerName:
    """The tokenizer of the runs' scores. Raises UserError if they have different ones."""
    names = {str(run.values.get("text", {}).get("tokenizer", "ptb")): run.folder for run in settings}
    if len(names) > 1:
        listed = ", ".join(f"{folder} {name}" for name, folder in names.items())
        raise UserError(f"the runs have different tokenizers ({listed}); compare scores of the same words")
    return validate(TextConfig, {"tokenizer": next(iter(names))}, where=str(settings[0].folder)).tokenizer


def group_runs(settings: Sequence[RunSettings]) -> dict[str, list[RunSettings]]:
    """Runs by system, named after the first run without its seed: runs that differ only in their seed are one system.

    Raises:
        UserError: two runs have the same settings and seed.
    """
    by_settings: dict[str, list[RunSettings]] = {}
    for run in settings:
        by_settings.setdefault(run.system, []).append(run)
    groups: dict[str, list[RunSettings]] = {}
    for group in by_settings.values():
        if len({run.seed for run in group}) < len(group):
            raise UserError(f"{group[0].folder} and {group[1].folder} are runs of the same settings and seed")
        name = group[0].folder.name
        if len(group) > 1:
            name = re.sub(r"[-_]?seed[-_]?\d+$", "", name)
        groups[str(group[0].folder) if name in groups else name] = group
    return groups


def systems_from_files(
    files: Sequence[str], references: str, *, split: str | None
) -> tuple[list[System], list[ImageRecord], str]:
    """One system per file of captions, the images with their references, and the split's name."""
    reference_set = read_references(references, split=split)
    systems = []
    stems = [Path(file).stem for file in files]
    for file, stem in zip(files, stems, strict=True):
        name = stem if stems.count(stem) == 1 else str(Path(file).with_suffix(""))
        captions, _ = match_ids(list(_captions(file).items()), reference_set.records)
        systems.append(System(name, name, [SystemRun(name, None, dict(captions))]))
    return systems, reference_set.records, reference_set.split
