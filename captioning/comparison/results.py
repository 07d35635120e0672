"""Scores of several systems on the same images, with paired tests, as JSON-able numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from captioning.errors import UserError
from captioning.metrics import NAMES, Scores, get_metric
from captioning.metrics.evaluation import Evaluation, evaluate
from captioning.metrics.reference_set import ReferenceSet
from captioning.metrics.significance import (
    METHOD,
    SEEDS_METHOD,
    comparable_metrics,
    compare_systems,
    holm,
)
from captioning.records import ImageId, ImageRecord
from captioning.text.tokenizers import TOKENIZERS, TokenizerName

BOTH_METHODS = f"with one seed: {METHOD}; where both systems have several seeds: {SEEDS_METHOD}"
LENGTH_BINS = 4
"""Number of equally large groups into which the images are divided by the length of their references."""


class SystemRun(NamedTuple):
    """The captions of one trained model, and the record of its training if there is one."""

    name: str
    seed: int | None
    captions: Mapping[ImageId, str]
    curve: Sequence[Mapping[str, float]] = ()  # one point per validation: step, seconds, tokens, score
    facts: Mapping[str, float] = {}  # speed and memory as logged during training


class System(NamedTuple):
    """A decoder with all its seeds, or one file of captions."""

    name: str
    label: str
    runs: Sequence[SystemRun]
    facts: Mapping[str, Any] = {}  # parameters, flops, learning_rate ...; JSON-able


class ScoredSystem(NamedTuple):
    """A system with the scores of each seed."""

    system: System
    evaluations: list[Evaluation]

    def per_image(self, metric: str) -> np.ndarray:
        """The images' scores (I,), means over seeds."""
        return np.mean([run.metrics.per_image[metric] for run in self.evaluations], axis=0)


def score_systems(
    systems: Sequence[System],
    records: Sequence[ImageRecord],
    *,
    split: str,
    tokenizer: TokenizerName = "ptb",
    metrics: Sequence[str] = NAMES,
) -> tuple[list[ScoredSystem], list[ImageRecord], list[str]]:
    """Score every run on the same images with the same references.

    Images without a caption of every run are left out for all systems, with a remark.

    Args:
        tokenizer: of the words that are scored.
        metrics: names as for `captioning.metrics.get_metric`.

    Returns:
        The scored systems, the records they are scored on, and the remarks.

    Raises:
        UserError: a run has captions of images outside the split, or the runs have no image in common.
    """
    runs = [run for system in systems for run in system.runs]
    common = {record.image_id for record in records}
    for run in runs:
        common &= set(run.captions)
    if not common:
        raise UserError(
            f"no image of {split} has a caption of every system; compare systems on the same split"
        )
    common_records = [record for record in records if record.image_id in common]
    remarks = []
    if len(common_records) < len(records):
        remarks.append(
            f"Scored on {len(common_records):,} of the split's {len(records):,} images: the others lack a caption "
            "of some run."
        )
    captions = {record.image_id: record.captions for record in records}
    references = ReferenceSet(captions, split_name=split, tokenizer=tokenizer)
    for run in runs:
        if unknown := run.captions.keys() - set(references.image_ids):
            first = next(image_id for image_id in run.captions if image_id in unknown)
            raise UserError(
                f"{run.name}: captions of images that are not in {split} (first {first!r}); "
                "compare systems on the same split"
            )
    scored = []
    for system in systems:
        evaluations = [_evaluate(run, references, common_records, metrics) for run in system.runs]
        scored.append(ScoredSystem(system, evaluations))
    return scored, common_records, remarks


def _evaluate(
    run: SystemRun, references: ReferenceSet, records: Sequence[ImageRecord], metrics: Sequence[str]
) -> Evaluation:
    captions = {record.image_id: run.captions[record.image_id] for record in records}
    return evaluate(
        references,
        captions,
        split_name=references.split_name,
        search=None,
        allow_partial=True,
        metrics=metrics,
    )


def compare(
    scored: Sequence[ScoredSystem],
    records: Sequence[ImageRecord],
    *,
    primary: str = "CIDEr-D",
    tokenizer: TokenizerName = "ptb",
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """All numbers of the comparison, as in report.json.

    Args:
        primary: name of the metric that conclusions are drawn from, as for `captioning.metrics.get_metric`.
        tokenizer: as in `score_systems`.
        resamples: of the paired bootstrap over images.
    """
    signature = scored[0].evaluations[0].signature
    metric, metrics = get_metric(primary), comparable_metrics(scored[0].evaluations[0].metrics)
    counted = {len(system.evaluations) > 1 for system in scored}
    return {
        "images": len(records),
        "references_fingerprint": signature["split_fingerprint"],
        "tokenizer": signature["tokenizer"],
        "primary": metric.name,
        "higher_is_better": metric.higher_is_better,
        "metrics": metrics,
        "scales": scored[0].evaluations[0].scales,
        "method": METHOD if counted == {False} else SEEDS_METHOD if counted == {True} else BOTH_METHODS,
        "resamples": resamples,
        "systems": [_system_numbers(system) for system in scored],
        "pairs": _paired_tests(scored, metrics, primary=metric.name, resamples=resamples, seed=seed),
        "by_length": scores_by_length(scored, records, tokenizer=tokenizer),
    }


def _system_numbers(scored: ScoredSystem) -> dict[str, Any]:
    system = scored.system
    return {
        "name": system.name,
        "label": system.label,
        **system.facts,
        "seeds": [run.seed for run in system.runs],
        "scores": {
            name: mean_and_sd([evaluation.scores[name] for evaluation in scored.evaluations])
            for name in scored.evaluations[0].scores
        },
        "curves": [list(map(dict, run.curve)) for run in system.runs],
        "logged": [dict(run.facts) for run in system.runs],
    }


def mean_and_sd(values: Sequence[float]) -> dict[str, Any]:
    """The mean and standard deviation over seeds (None with one seed), and the values themselves."""
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": list(values),
    }


def _paired_tests(
    scored: Sequence[ScoredSystem], metrics: Sequence[str], *, primary: str, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Every pair of systems on every metric.

    The pairs on the primary metric are one family of tests, whose p values are corrected ("holm"); those on other
    metrics are exploratory. "separated" is None if a system has one seed.
    """
    runs = [[evaluation.metrics for evaluation in system.evaluations] for system in scored]
    compared = compare_systems(runs, metrics=metrics, resamples=resamples, seed=seed)
    pairs: list[dict[str, Any]] = []
    for (first, second), tests in compared.items():
        a, b = scored[first], scored[second]
        by_metric = {}
        for name, test in tests.items():
            scores = [[run.scores[name] for run in system.evaluations] for system in (a, b)]
            apart = separated(*scores) if min(map(len, scores)) > 1 else None
            by_metric[name] = {**test._asdict(), "separated": apart}
        pairs.append({"a": a.system.name, "b": b.system.name, "metrics": by_metric})
    family = [pair["metrics"][primary] for pair in pairs]
    for test, corrected in zip(family, holm([test["p"] for test in family]), strict=True):
        test["holm"] = corrected
    return pairs


def separated(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether every seed of one system scores above every seed of the other."""
    return min(a) > max(b) or max(a) < min(b)


def scores_by_length(
    scored: Sequence[ScoredSystem], records: Sequence[ImageRecord], *, tokenizer: TokenizerName = "ptb"
) -> list[dict[str, Any]]:
    """Scores of groups of images by the mean length of their references; [] if all have the same length.

    CIDEr's document frequencies are those of the whole split.
    """
    split = TOKENIZERS[tokenizer]
    lengths = np.array([statistics.fmean(len(split(text)) for text in record.captions) for record in records])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_BINS + 1)))
    if len(edges) < 3:
        return []
    bins = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, len(edges) - 2)
    rows = []
    for number in range(len(edges) - 1):
        chosen = bins == number
        if not chosen.any():
            continue
        systems = {}
        for system in scored:
            seeds = [_scores_of_images(run.metrics, chosen) for run in system.evaluations]
            systems[system.system.name] = {
                name: mean_and_sd([seed[name] for seed in seeds]) for name in seeds[0]
            }
        rows.append(
            {
                "from": float(lengths[chosen].min()),
                "to": float(lengths[chosen].max()),
                "mean": float(lengths[chosen].mean()),
                "images": int(chosen.sum()),
                "systems": systems,
            }
        )
    return rows


def _scores_of_images(scores: Scores, chosen: np.ndarray) -> dict[str, float]:
    """Corpus scores of the images where `chosen` (I,) is True."""
    means = {name: float(values[chosen].mean()) for name, values in scores.per_image.items()}
    return means | {
        name: float(function(values[chosen].sum(axis=0)))
        for name, (values, function) in scores.statistics.items()
    }


class ImageScores(NamedTuple):
    """An image and every system's score of it, the mean over seeds."""

    record: ImageRecord
    scores: Mapping[str, float]


def largest_differences(
    scored: Sequence[ScoredSystem],
    records: Sequence[ImageRecord],
    better: str,
    worse: str,
    *,
    primary: str,
    higher_is_better: bool,
    count: int,
) -> list[ImageScores]:
    """The images on which `better` scores better than `worse` by the largest difference."""
    scores = _image_scores(scored, primary)
    difference = (scores[better] - scores[worse]) * (1 if higher_is_better else -1)
    order = np.argsort(-difference, kind="stable")[:count]
    return [_image(records, scores, int(row)) for row in order if difference[row] > 0]


def worst_scores(
    scored: Sequence[ScoredSystem],
    records: Sequence[ImageRecord],
    *,
    primary: str,
    higher_is_better: bool,
    count: int,
) -> list[ImageScores]:
    """The images on which the best system's score is worst."""
    scores = _image_scores(scored, primary)
    best = np.max([values if higher_is_better else -values for values in scores.values()], axis=0)
    return [_image(records, scores, int(row)) for row in np.argsort(best, kind="stable")[:count]]


def _image_scores(scored: Sequence[ScoredSystem], primary: str) -> dict[str, np.ndarray]:
    return {system.system.name: system.per_image(primary) for system in scored}


def _image(records: Sequence[ImageRecord], scores: Mapping[str, np.ndarray], row: int) -> ImageScores:
    return ImageScores(records[row], {name: float(values[row]) for name, values in scores.items()})
