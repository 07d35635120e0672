"""The conclusions of a report: rules that pick a verdict from the numbers, and one sentence template for each."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from captioning.comparison.conditions import condition_sentences
from captioning.comparison.results import separated
from captioning.datasets.shapes_grammar import NAMES

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


# --- the length study ---------------------------------------------------------------------------------------

CHANCE = 1 / len(NAMES)
CLEAR = 0.1
"""Least difference between shares that counts as clear, given that no seeds overlap."""
MORE_EXPENSIVE, SIMILAR = 1.25, 1.1
"""Cost ratios from which one system is clearly more expensive, and up to which the two are similar."""

CONTEXT = "LSTMs carry context that RNNs lose"
CONTEXT_REASONS = {
    "yes": "The LSTM is clearly ahead at {ahead} words. {numbers}",
    "depends": "The LSTM is clearly ahead at {ahead} words, not at {other} words. {numbers}",
    "no": "The LSTM is clearly ahead at no length tried. {numbers}",
    "open": "Neither remembers more than chance at any length. {numbers}",
}
TRAINING = "LSTMs are computationally heavy to train"
TRAINING_REASONS = {
    "yes": "At every length the LSTM takes clearly longer than the Transformer. {numbers}",
    "no": f"At every length the LSTM takes at most {SIMILAR} times as long as the Transformer. {{numbers}}",
    "at some": "The LSTM takes clearly longer than the Transformer only at {lengths} words. {numbers}",
    "slightly": "The LSTM takes longer than the Transformer at some length, but clearly longer at none. {numbers}",
}
LONG = "Transformers are better for extremely long sequences"
LONG_REASONS = {
    "open": "There is no clear difference. {numbers}",
    "worse": "The Transformer is not clearly better. {numbers}",
    "expensive": "The Transformer is better in {better}, but more expensive in {expensive}. {numbers}",
    "partly": "The Transformer is better in {better}, but not in every measurement. {numbers}",
    "yes": "The Transformer is better and not more expensive. {numbers}",
}
NOT_MEASURED = "This needs systems named `{}` and `{}`."
LENGTH_HEADLINE = (
    "Three claims, for decoders of this size, this training budget and drawn scenes only: {answers}."
)
DEFINITIONS = (
    f"“Clearly ahead” or “better”: at least {100 * CLEAR:.0f} percentage points apart, with no overlap between seeds. "
    f"“Clearly longer”: at least {MORE_EXPENSIVE} times the cost. “Not more expensive”: at most {SIMILAR} times."
)

SeedValues = Mapping[str, Mapping[int, Sequence[float]]]
"""System -> caption length in words -> one value per seed."""


class Claim(NamedTuple):
    """A claim, its answer ("yes", "no", "depends", "open" or "not measured") and the reason."""

    claim: str
    answer: str
    reason: str


def length_claims(study: Mapping[str, Any]) -> list[Claim]:
    """Three claims about RNN, LSTM and Transformer, answered from a length study.

    Args:
        study: "recall" and "quality" (`SeedValues`), "costs" (system -> rows of `length.cost_by_length`),
            "metric", "labels" and "lengths".
    """
    return [_context_claim(study), _training_claim(study), _long_claim(study)]


def length_headline(claims: Sequence[Claim]) -> str:
    """The claims and their answers in one sentence."""
    return LENGTH_HEADLINE.format(
        answers="; ".join(f"“{claim.claim}”: **{claim.answer}**" for claim in claims)
    )


def _context_claim(study: Mapping[str, Any]) -> Claim:
    recall = study["recall"]
    lengths = [words for words in study["lengths"] if _measured(recall, words, "lstm", "rnn")]
    if not lengths:
        return Claim(CONTEXT, "not measured", NOT_MEASURED.format("lstm", "rnn"))
    ahead = [words for words in lengths if _clearly_above(recall["lstm"][words], recall["rnn"][words])]
    behind = [words for words in lengths if _clearly_above(recall["rnn"][words], recall["lstm"][words])]
    rnn_learned = any(statistics.fmean(recall["rnn"][words]) >= CHANCE + CLEAR for words in lengths)
    if ahead:
        answer = "depends" if behind or lengths[-1] not in ahead else "yes"
    else:
        answer = "no" if behind or rnn_learned else "open"
    numbers = "; ".join(
        f"{words} words: LSTM {_percent(recall['lstm'][words])}, RNN {_percent(recall['rnn'][words])}"
        for words in lengths
    )
    reason = CONTEXT_REASONS[answer].format(
        ahead=_join(ahead),
        other=_join(words for words in lengths if words not in ahead),
        numbers=f"Final names predicted correctly, by length (chance is {_percent([CHANCE])}): {numbers}.",
    )
    return Claim(CONTEXT, answer, reason)


def _training_claim(study: Mapping[str, Any]) -> Claim:
    costs = study["costs"]
    if not {"lstm", "transformer"} <= costs.keys():
        return Claim(TRAINING, "not measured", NOT_MEASURED.format("lstm", "transformer"))
    ratios = {
        name: [
            lstm["train_us_per_token"] / other["train_us_per_token"]
            for lstm, other in zip(costs["lstm"], costs[name], strict=True)
        ]
        for name in costs
        if name != "lstm"
    }
    lengths = [row["words"] for row in costs["lstm"]]
    slower = [
        words for words, ratio in zip(lengths, ratios["transformer"], strict=True) if ratio >= MORE_EXPENSIVE
    ]
    if len(slower) == len(lengths):
        answer = reason = "yes"
    elif max(ratios["transformer"]) <= SIMILAR:
        answer = reason = "no"
    else:
        answer, reason = "depends", "at some" if slower else "slightly"
    numbers = "; ".join(
        f"{values[0]:.2f} times that of the {study['labels'][name]} at {lengths[0]:.0f} words and {values[-1]:.2f} "
        f"times at {lengths[-1]:.0f}"
        for name, values in ratios.items()
    )
    return Claim(
        TRAINING,
        answer,
        TRAINING_REASONS[reason].format(
            lengths=_join(slower), numbers=f"The LSTM's training time per token, at matched size: {numbers}."
        ),
    )


def _long_claim(study: Mapping[str, Any]) -> Claim:
    recall, quality, costs = study["recall"], study["quality"], study["costs"]
    longest, metric = study["lengths"][-1], study["metric"]
    pair = ("transformer", "lstm")
    if not (_measured(quality, longest, *pair) and set(pair) <= costs.keys()):
        return Claim(LONG, "not measured", NOT_MEASURED.format("lstm", "transformer"))
    scores = [quality[name][longest] for name in pair]
    means = [statistics.fmean(values) for values in scores]
    better = {metric: separated(*scores) and means[0] > means[1]}
    worse = separated(*scores) and means[0] < means[1]
    numbers = f"{metric} {100 * means[0]:.1f} against the LSTM's {100 * means[1]:.1f}"
    if _measured(recall, longest, *pair):
        recalled = [recall[name][longest] for name in pair]
        better["memory"] = _clearly_above(*recalled)
        worse = worse or _clearly_above(*reversed(recalled))
        numbers += f", final names {_percent(recalled[0])} against {_percent(recalled[1])}"
    ratios = {
        stage: costs["transformer"][-1][key] / costs["lstm"][-1][key]
        for stage, key in (("training", "train_us_per_token"), ("decoding", "decode_ms_per_word"))
    }
    growth = [costs[name][-1]["decode_ms_per_word"] / costs[name][0]["decode_ms_per_word"] for name in pair]
    expensive = [stage for stage, ratio in ratios.items() if ratio > SIMILAR]
    if worse:
        answer, reason = "depends" if any(better.values()) else "no", "worse"
    elif not any(better.values()):
        answer = reason = "open"
    elif expensive:
        answer, reason = "depends", "expensive"
    elif not all(better.values()):
        answer, reason = "depends", "partly"
    else:
        answer = reason = "yes"
    numbers = (
        f"At {longest} words: {numbers}; {ratios['training']:.2f} times the LSTM's training time per token and "
        f"{ratios['decoding']:.2f} times its decoding time per word. From {study['lengths'][0]} to {longest} words the "
        f"decoding time per word grew {growth[0]:.1f}-fold, the LSTM's {growth[1]:.1f}-fold."
    )
    return Claim(
        LONG,
        answer,
        LONG_REASONS[reason].format(
            better=" and ".join(name for name, is_better in better.items() if is_better),
            expensive=" and ".join(expensive),
            numbers=numbers,
        ),
    )


def _measured(values: SeedValues, words: int, *systems: str) -> bool:
    return all(values.get(system, {}).get(words) for system in systems)


def _clearly_above(a: Sequence[float], b: Sequence[float]) -> bool:
    return separated(a, b) and statistics.fmean(a) - statistics.fmean(b) >= CLEAR


def _percent(values: Sequence[float]) -> str:
    return f"{100 * statistics.fmean(values):.0f} %"


def _join(lengths: Any) -> str:
    return ", ".join(f"{words:.0f}" for words in lengths)
