"""The conclusions of a report: rules that pick a verdict from the numbers, and one sentence template for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from captioning.comparison.conditions import condition_sentences

SIGNIFICANCE = 0.05
NEGLIGIBLE = 0.0005
"""Smaller differences vanish in a table with one decimal, so they count as none however small p is."""

MIN_SEEDS = 3
"""Fewer seeds of a system support no statement about a kind of model."""

SUPPORTED = "supported"
FEW_SEEDS = "few seeds"
SINGLE_SEED = "single seed"
NO_CLEAR_DIFFERENCE = "no clear difference"

NUMBERS = (
    "{metric} {scores[0]:.1f} against {scores[1]:.1f}; difference {difference:.1f}, 95 % interval over {counted} "
    "{low:.1f} to {high:.1f}, corrected p {p}"
)
FINDINGS = {
    SUPPORTED: "**{better} scores better than {worse}** ({numbers}; {seeds} seeds each).",
    FEW_SEEDS: "{better} scores better than {worse} in these trainings ({numbers}), but {seeds} seeds are too few to "
    "say so of the two kinds of model: train at least " + str(MIN_SEEDS) + ".",
    SINGLE_SEED: "{better} scores better than {worse} ({numbers}). With one seed, this holds for these two trained "
    "models only, not for the two kinds of model.",
    NO_CLEAR_DIFFERENCE: "There is no clear difference between {better} and {worse} ({numbers}).",
}
HEADLINES = {
    SUPPORTED: "Supported by the data: {pairs}.",
    FEW_SEEDS: "Open, because of too few seeds: {pairs}.",
    SINGLE_SEED: "True of single trained models, not of kinds of model: {pairs}.",
    NO_CLEAR_DIFFERENCE: "No clear difference: {pairs}.",
}
HEADLINE_START = "{metric} on {images:,} images of `{split}`."
ONE_SYSTEM = "One system: nothing to compare."

LIMITS = {
    "one seed": "With one run of a system, how much another seed would change is unknown, and it is often as much as "
    "the difference between systems; intervals and p values then count the images only.",
    "few seeds": "Intervals and p values count the choice of the images and of the seeds. With {seeds} seeds per "
    "system they are rough: between equal systems, p below 0.05 came out in 3 to 7 % of simulated studies, and in up "
    "to {worst} % if one system varied far more between seeds than the other.",
    "exploratory": "p values of {metric} are corrected for the number of pairs (Holm). Other metrics are exploratory: "
    "their p values are not corrected, and no conclusion is drawn from them.",
    "same split": "{chosen} chosen on `{split}`, the split reported here: all scores are slightly too high, most of "
    "all those of runs with more validations.",
    "edge": "The learning rate of {systems} is the lowest or the highest of those tried: another may be better.",
    "rising": "The validation score of {systems} was best at the last validation of a run: with more training it may "
    "rise further.",
    "few images": "{images:,} images: differences in {metric} below about {width:.1f} are within what {other} would "
    "change.",
}


class Finding(NamedTuple):
    """The verdict on two systems in the primary metric."""

    better: str
    worse: str
    verdict: str
    sentence: str


def findings(comparison: Mapping[str, Any]) -> list[Finding]:
    """A verdict for every two systems, never stronger than images and seeds support."""
    return [_finding(pair, comparison) for pair in comparison["pairs"]]


def _finding(pair: Mapping[str, Any], comparison: Mapping[str, Any]) -> Finding:
    metric = comparison["primary"]
    systems = {system["name"]: system for system in comparison["systems"]}
    test = pair["metrics"][metric]
    sign = -1 if test["difference"] < 0 else 1
    a_is_better = (sign > 0) == comparison["higher_is_better"]
    better, worse = (systems[pair[side]] for side in ("ab" if a_is_better else "ba"))
    seeds = min(len(better["seeds"]), len(worse["seeds"]))
    if test["holm"] >= SIGNIFICANCE or abs(test["difference"]) < NEGLIGIBLE:
        verdict = NO_CLEAR_DIFFERENCE
    elif seeds < 2:
        verdict = SINGLE_SEED
    elif seeds < MIN_SEEDS:
        verdict = FEW_SEEDS
    else:
        verdict = SUPPORTED
    scale = comparison["scales"][metric]
    low, high = sorted((scale * sign * test["low"], scale * sign * test["high"]))
    numbers = NUMBERS.format(
        metric=metric,
        scores=[scale * system["scores"][metric]["mean"] for system in (better, worse)],
        difference=scale * abs(test["difference"]),
        low=low,
        high=high,
        counted="images" if test["degrees"] is None else "images and seeds",
        p=format_p(test["holm"], at_floor=test["at_floor"]),
    )
    sentence = FINDINGS[verdict].format(
        better=better["label"], worse=worse["label"], numbers=numbers, seeds=seeds
    )
    return Finding(better["name"], worse["name"], verdict, sentence)


def format_p(p: float, *, at_floor: bool = False) -> str:
    """Three decimals, or "< 0.001"; "<=" before them if the resamples cannot show a smaller p."""
    return "< 0.001" if p < 0.001 else f"≤ {p:.3f}" if at_floor else f"{p:.3f}"


def headline(comparison: Mapping[str, Any], *, split: str) -> str:
    """All verdicts in a few words each."""
    labels = {system["name"]: system["label"] for system in comparison["systems"]}
    pairs: dict[str, list[str]] = {verdict: [] for verdict in HEADLINES}
    for finding in findings(comparison):
        word = "and" if finding.verdict == NO_CLEAR_DIFFERENCE else "better than"
        pairs[finding.verdict].append(f"{labels[finding.better]} {word} {labels[finding.worse]}")
    sentences = [
        HEADLINES[verdict].format(pairs=", ".join(names)) for verdict, names in pairs.items() if names
    ]
    start = HEADLINE_START.format(metric=comparison["primary"], images=comparison["images"], split=split)
    return " ".join([start, *(sentences or [ONE_SYSTEM])])


def limits(comparison: Mapping[str, Any], *, split: str, chosen_on: str | None) -> list[str]:
    """What the numbers cannot show."""
    counts = sorted({len(system["seeds"]) for system in comparison["systems"]})
    metric, images = comparison["primary"], comparison["images"]
    sentences = [LIMITS["one seed"]] if counts[0] == 1 else []
    if several := [count for count in counts if count > 1]:
        seeds, worst = " to ".join(map(str, several)), 12 if several[0] == 2 else 8
        sentences.append(LIMITS["few seeds"].format(seeds=seeds, worst=worst))
    sentences.append(LIMITS["exploratory"].format(metric=metric))
    if chosen_on == split:
        searched = any(system.get("learning_rates") for system in comparison["systems"])
        chosen = (
            "The learning rates and the best epoch of each run were"
            if searched
            else "The best epoch of each run was"
        )
        sentences.append(LIMITS["same split"].format(chosen=chosen, split=split))
    concerned: dict[str, Callable[[Mapping[str, Any]], bool]] = {"edge": _rate_at_edge}
    if comparison["metric"] == metric:
        concerned["rising"] = _still_rising(comparison["higher_is_better"])
    for key, concerns in concerned.items():
        if labels := [system["label"] for system in comparison["systems"] if concerns(system)]:
            sentences.append(LIMITS[key].format(systems=" and of ".join(labels)))
    if images < 2000 and comparison["pairs"]:
        tests = [pair["metrics"][metric] for pair in comparison["pairs"]]
        width = comparison["scales"][metric] * max(test["high"] - test["low"] for test in tests) / 2
        other = "other images" if counts[0] == 1 else "other images and seeds"
        sentences.append(LIMITS["few images"].format(images=images, metric=metric, width=width, other=other))
    return [*sentences, *condition_sentences(comparison["systems"])]


def _rate_at_edge(system: Mapping[str, Any]) -> bool:
    """Whether the learning rate of a search is the lowest or highest of several that were tried."""
    tried = [float(rate) for rate in system.get("learning_rates", {})]
    return len(tried) > 1 and not min(tried) < system["learning_rate"] < max(tried)


def _still_rising(higher_is_better: bool) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a run of a system has its best validation score at the end; the score is the primary metric."""
    choose = max if higher_is_better else min

    def rising(system: Mapping[str, Any]) -> bool:
        scores = [[point["score"] for point in curve] for curve in system["curves"]]
        return any(len(own) > 1 and own[-1] == choose(own) for own in scores)

    return rising
