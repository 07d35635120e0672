"""What several systems' captions of one split say about them, as numbers and sentences. No torch, no pictures."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from captioning.errors import UserError
from captioning.metrics import NAMES, AdditiveStatistics, Scores
from captioning.metrics.evaluation import Evaluation, evaluate
from captioning.metrics.reference_set import ReferenceSet
from captioning.metrics.significance import METHOD, holm, paired_bootstrap
from captioning.records import ImageId, ImageRecord
from captioning.text.tokenizer import tokenize

LEVEL = 0.05
LEAST = 0.0005
"""Differences that a table with a digit behind the point would not show are none, however certain."""

BINS = 4
"""Parts of equal size that the images are put into by the length of their references."""


class SystemRun(NamedTuple):
    """One seed of a system: its captions of the split, and where it is known how it was trained."""

    name: str
    seed: int | None
    captions: Mapping[ImageId, str]
    curve: Sequence[Mapping[str, float]] = ()  # a validation each: step, seconds, tokens, score
    facts: Mapping[str, float] = {}  # speed and memory as the training logged them


class System(NamedTuple):
    """What is compared: a decoder with all its seeds, or a file of captions."""

    name: str
    label: str
    runs: Sequence[SystemRun]
    facts: Mapping[str, Any] = {}  # parameters, flops, learning rate ...; JSON-able


class Scored(NamedTuple):
    """A system with the scores of each seed, and of its seeds together."""

    system: System
    evaluations: list[Evaluation]
    pooled: Scores


def score_all(
    systems: Sequence[System], records: Sequence[ImageRecord], *, split: str
) -> tuple[list[Scored], list[ImageRecord], list[str]]:
    """Score every run on the same images with the same references.

    Images that a run has no caption of are left out for all; what that leaves is said.

    Returns:
        the systems, the images they are scored on, and remarks.

    Raises:
        UserError: a run has captions of images that are not in the split, or none of those that are.
    """
    runs = [run for system in systems for run in system.runs]
    there = {record.image_id for record in records}
    for run in runs:
        there &= set(run.captions)
    if not there:
        raise UserError(
            f"no image of {split} has a caption of every system; compare systems on the same split"
        )
    kept = [record for record in records if record.image_id in there]
    remarks = []
    if len(kept) < len(records):
        remarks.append(
            f"Scored on {len(kept):,} of the split's {len(records):,} images: the others have no caption of some run."
        )
    references = ReferenceSet({record.image_id: record.captions for record in records}, split_name=split)
    known = set(references.image_ids)
    scored = []
    for system in systems:
        evaluations = []
        for run in system.runs:
            if strange := [each for each in run.captions if each not in known]:
                raise UserError(
                    f"{run.name}: captions of images that are not in {split} (first {strange[0]!r}); "
                    "compare systems on the same split"
                )
            captions = {record.image_id: run.captions[record.image_id] for record in kept}
            evaluations.append(
                evaluate(references, captions, split_name=split, search=None, allow_partial=True)
            )
        scored.append(Scored(system, evaluations, pooled([each.metrics for each in evaluations])))
    return scored, kept, remarks


def pooled(scores: Sequence[Scores]) -> Scores:
    """Several seeds' scores of the same images as one system's: BLEU's counts summed, other scores averaged."""
    per_image = {
        name: np.mean([one.per_image[name] for one in scores], axis=0) for name in scores[0].per_image
    }
    corpus = {name: float(values.mean()) for name, values in per_image.items()}
    statistics, summed = {}, dict[int, np.ndarray]()
    for name, (values, function) in scores[0].statistics.items():
        if id(values) not in summed:  # BLEU-1 to BLEU-4 have the same statistics
            summed[id(values)] = np.sum([each.statistics[name].values for each in scores], axis=0)
        statistics[name] = AdditiveStatistics(summed[id(values)], function)
        corpus[name] = float(function(summed[id(values)].sum(axis=0)))
    return Scores(corpus, per_image, statistics)


def results(
    scored: Sequence[Scored],
    records: Sequence[ImageRecord],
    *,
    primary: str = "CIDEr-D",
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """All numbers of the comparison, JSON-able: what `report.json` holds."""
    pairs = _pairs(scored, resamples=resamples, seed=seed)
    return {
        "images": len(records),
        "references_fingerprint": scored[0].evaluations[0].signature["split_fingerprint"],
        "tokenizer": scored[0].evaluations[0].signature["tokenizer"],
        "primary": primary,
        "method": METHOD,
        "resamples": resamples,
        "systems": [_system(each) for each in scored],
        "pairs": pairs,
        "by_length": by_length(scored, records),
    }


def _system(scored: Scored) -> dict[str, Any]:
    system = scored.system
    names = list(scored.evaluations[0].scores)
    return {
        "name": system.name,
        "label": system.label,
        **system.facts,
        "seeds": [run.seed for run in system.runs],
        "scores": {
            name: spread([evaluation.scores[name] for evaluation in scored.evaluations]) for name in names
        },
        "curves": [list(map(dict, run.curve)) for run in system.runs],
        "logged": [dict(run.facts) for run in system.runs],
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation over seeds (none of one seed) and the values themselves."""
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": list(values),
    }


def _pairs(scored: Sequence[Scored], *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Every two systems on every metric, corrected over all of these tests together."""
    found = []
    for a, b in itertools.combinations(scored, 2):
        compared = paired_bootstrap(a.pooled, b.pooled, metrics=NAMES, resamples=resamples, seed=seed)
        metrics = {}
        for name, each in compared.items():
            one, other = ([evaluation.scores[name] for evaluation in which.evaluations] for which in (a, b))
            metrics[name] = {
                **each._asdict(),
                "separated": min(one) > max(other) or max(one) < min(other),
            }
        found.append({"a": a.system.name, "b": b.system.name, "metrics": metrics})
    tests = [metric for pair in found for metric in pair["metrics"].values()]  # type: ignore[attr-defined]
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["holm"] = corrected
    return found


def by_length(scored: Sequence[Scored], records: Sequence[ImageRecord]) -> list[dict[str, Any]]:
    """Scores in parts of the images, by the mean length of their references; [] where all are of one length."""
    lengths = np.array(
        [statistics.fmean(len(tokenize(text)) for text in record.captions) for record in records]
    )
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, BINS + 1)))
    if len(edges) < 3:
        return []
    part = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, len(edges) - 2)
    rows = []
    for number in range(len(edges) - 1):
        chosen = part == number
        if not chosen.any():
            continue
        systems = {}
        for each in scored:
            scores = [_part(evaluation.metrics, chosen) for evaluation in each.evaluations]
            systems[each.system.name] = {name: spread([one[name] for one in scores]) for name in scores[0]}
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


def _part(scores: Scores, chosen: np.ndarray) -> dict[str, float]:
    """Corpus scores of some of the images, CIDEr's document frequencies being the whole split's."""
    means = {name: float(values[chosen].mean()) for name, values in scores.per_image.items()}
    return means | {
        name: float(function(values[chosen].sum(axis=0)))
        for name, (values, function) in scores.statistics.items()
    }


class Finding(NamedTuple):
    """What is said of two systems on the metric that counts."""

    better: str
    worse: str
    verdict: str  # "supported", "seeds overlap", "one seed", "not told apart"
    sentence: str


def findings(found: Mapping[str, Any]) -> list[Finding]:
    """For every two systems, what their captions support. Says no more than images and seeds allow."""
    return [_finding(pair, found) for pair in found["pairs"]]


def _finding(pair: Mapping[str, Any], found: Mapping[str, Any]) -> Finding:
    primary = found["primary"]
    systems = {each["name"]: each for each in found["systems"]}
    test = pair["metrics"][primary]
    a, b = (systems[pair[side]] for side in "ab")
    better, worse = (a, b) if test["difference"] >= 0 else (b, a)
    low, high = (
        sorted((abs(test["low"]), abs(test["high"])))
        if test["low"] * test["high"] > 0
        else (sorted((test["low"], test["high"]) if better is a else (-test["low"], -test["high"])))
    )
    scores = [each["scores"][primary]["mean"] for each in (better, worse)]
    numbers = (
        f"{primary} {100 * scores[0]:.1f} against {100 * scores[1]:.1f}; difference "
        f"{100 * abs(test['difference']):.1f}, 95 % interval over images {100 * low:.1f} to {100 * high:.1f}, "
        f"corrected p {shown_p(test['holm'])}"
    )
    names = f"{better['label']} scores above {worse['label']}"
    count = min(len(better["seeds"]), len(worse["seeds"]))
    if test["holm"] >= LEVEL or abs(test["difference"]) < LEAST:
        verdict = "not told apart"
        sentence = f"{better['label']} and {worse['label']} are not told apart ({numbers})."
    elif count < 2:
        verdict = "one seed"
        sentence = (
            f"{names} ({numbers}): of these two models, not of their kinds, which one seed cannot show."
        )
    elif not test["separated"]:
        verdict = "seeds overlap"
        sentence = f"{names} on these images ({numbers}), but their seeds overlap: another training may turn it round."
    else:
        verdict = "supported"
        sentence = (
            f"**{names}** ({numbers}; every seed of the one above every seed of the other, {count} each)."
        )
    return Finding(better["name"], worse["name"], verdict, sentence)


def shown_p(p: float) -> str:
    """Below 0.001 as that, else with three digits."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def headline(found: Mapping[str, Any], *, split: str) -> str:
    """One sentence: what the data support and what they don't."""
    labels = {each["name"]: each["label"] for each in found["systems"]}
    said: dict[str, list[str]] = {}
    for each in findings(found):
        said.setdefault(each.verdict, []).append(
            f"{labels[each.better]} {'and' if each.verdict == 'not told apart' else 'above'} {labels[each.worse]}"
        )
    parts = []
    if "supported" in said:
        parts.append(f"support, in {found['primary']}, {_listed(said['supported'])}")
    if "one seed" in said:
        parts.append(f"show for single trained models, not for kinds of model, {_listed(said['one seed'])}")
    if "seeds overlap" in said:
        parts.append(f"leave open, because seeds overlap, {_listed(said['seeds overlap'])}")
    if "not told apart" in said:
        parts.append(f"do not tell apart {_listed(said['not told apart'])}")
    start = f"On {found['images']:,} images of `{split}`"
    return f"{start} the data {'; '.join(parts)}." if parts else f"{start}: one system, nothing to compare."


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items[:-1]) + " and " + items[-1] if len(items) > 1 else items[0]


def limits(found: Mapping[str, Any], *, split: str, chosen_on: str | None) -> list[str]:
    """What the numbers cannot say."""
    said = []
    counts = {len(each["seeds"]) for each in found["systems"]}
    seeds = " to ".join(map(str, sorted(counts)))
    if counts == {1}:
        said.append(
            "One run a system: how much another seed would change is not known, and is often as much as the "
            "difference between systems."
        )
    else:
        count = max(counts)
        chance = math.comb(2 * count, count) / 2
        said.append(
            f"{seeds} seeds a system: by chance alone, {count} seeds of one system all lie above (or all below) "
            f"{count} of an equal one in 1 of {chance:.0f} cases, and a deviation from so few is a rough guess."
        )
    said.append(
        "The intervals and p values are over images, for the trained models that there are, seeds pooled; the "
        "spread over seeds stands beside them. p values are corrected for all pairs and metrics together (Holm)."
    )
    if chosen_on == split:
        said.append(
            f"The best epoch of each run was chosen on `{split}`, the split reported here: all scores are a little too "
            "high, those of runs with more validations more so."
        )
    if found["images"] < 2000:
        widths = [
            pair["metrics"][found["primary"]]["high"] - pair["metrics"][found["primary"]]["low"]
            for pair in found["pairs"]
        ]
        if widths:
            said.append(
                f"{found['images']:,} images: differences in {found['primary']} below about "
                f"{100 * max(widths) / 2:.1f} are within what other images would change."
            )
    said.append(
        "One data set, one encoder, one size and one budget: what is true here need not be at another size, with "
        "more training or with other images."
    )
    return said


class Shown(NamedTuple):
    """An image to be shown, and why."""

    record: ImageRecord
    values: Mapping[str, float]  # system -> its score of the image, the mean over seeds


def differ_most(
    scored: Sequence[Scored],
    records: Sequence[ImageRecord],
    better: str,
    worse: str,
    *,
    primary: str,
    count: int,
) -> list[Shown]:
    """The images on which `better` is furthest above `worse`."""
    each = _values(scored, primary)
    gap = each[better] - each[worse]
    order = np.argsort(-gap, kind="stable")[:count]
    return [_shown(records, each, int(row)) for row in order if gap[row] > 0]


def fail_most(
    scored: Sequence[Scored], records: Sequence[ImageRecord], *, primary: str, count: int
) -> list[Shown]:
    """The images on which the best of all systems is worst."""
    each = _values(scored, primary)
    best = np.max(list(each.values()), axis=0)
    return [_shown(records, each, int(row)) for row in np.argsort(best, kind="stable")[:count]]


def _values(scored: Sequence[Scored], primary: str) -> dict[str, np.ndarray]:
    return {each.system.name: each.pooled.per_image[primary] for each in scored}


def _shown(records: Sequence[ImageRecord], each: Mapping[str, np.ndarray], row: int) -> Shown:
    return Shown(records[row], {name: float(values[row]) for name, values in each.items()})
