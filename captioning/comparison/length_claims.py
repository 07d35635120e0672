"""The length study's three claims about RNN, LSTM and Transformer, and the rules that answer them from the numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from captioning.comparison.verdicts import MIN_SEEDS, SIGNIFICANCE
from captioning.datasets.shapes_grammar import NAMES
from captioning.metrics.student_t import welch_p

CHANCE = 1 / len(NAMES)
CLEAR = 0.1
"""Least difference between shares that counts as clear, if it is significant over seeds."""
MORE_EXPENSIVE, SIMILAR = 1.25, 1.1
"""Cost ratios from which one system is clearly more expensive, and up to which the two are similar."""

FEW_SEEDS_REASON = (
    f"At some length there are fewer than {MIN_SEEDS} seeds, too few for an answer. {{numbers}}"
)
CONTEXT = "LSTMs carry context that RNNs lose"
CONTEXT_REASONS = {
    "yes": "The LSTM is clearly ahead at {ahead} words. {numbers}",
    "depends": "The LSTM is clearly ahead at {ahead} words, not at {other} words. {numbers}",
    "no": "The LSTM is clearly ahead at no length tried. {numbers}",
    "open": "Neither remembers more than chance at any length. {numbers}",
    "few seeds": FEW_SEEDS_REASON,
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
    "few seeds": FEW_SEEDS_REASON,
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
    f"“Clearly ahead” or “better”: p below {SIGNIFICANCE} by Welch's test over at least {MIN_SEEDS} seeds each, at one "
    f"length, not corrected for the number of lengths; and final names at least {100 * CLEAR:.0f} percentage points "
    f"apart. “Clearly longer”: at least {MORE_EXPENSIVE} times the cost. “Not more expensive”: at most {SIMILAR} times."
)

SeedValues = Mapping[str, Mapping[int, Sequence[float]]]
"""System -> caption length in words -> one value per seed."""


class Claim(NamedTuple):
    """A claim, its answer ("yes", "no", "depends", "open" or "not measured") and the reason."""

    claim: str
    answer: str
    reason: str


def answer_claims(study: Mapping[str, Any]) -> list[Claim]:
    """Three claims about RNN, LSTM and Transformer, answered from a length study.

    Args:
        study: "recall" and "quality" (`SeedValues`), "costs" (system -> rows of `length.cost_by_length`),
            "metric", "labels" and "lengths".
    """
    return [_context_claim(study), _training_claim(study), _long_claim(study)]


def headline(claims: Sequence[Claim]) -> str:
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
    if any(_few_seeds(recall, words, "lstm", "rnn") for words in lengths):
        answer, reason = "open", "few seeds"
    elif ahead:
        answer = reason = "depends" if behind or lengths[-1] not in ahead else "yes"
    else:
        answer = reason = "no" if behind or rnn_learned else "open"
    numbers = "; ".join(
        f"{words} words: LSTM {_percent(recall['lstm'][words])}, RNN {_percent(recall['rnn'][words])}"
        for words in lengths
    )
    text = CONTEXT_REASONS[reason].format(
        ahead=_join(ahead),
        other=_join(words for words in lengths if words not in ahead),
        numbers=f"Final names predicted correctly, by length (chance is {_percent([CHANCE])}): {numbers}.",
    )
    return Claim(CONTEXT, answer, text)


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
    better = {metric: _above(*scores)}
    worse = _above(*reversed(scores))
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
    if _few_seeds(quality, longest, *pair):
        answer, reason = "open", "few seeds"
    elif worse:
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


def _few_seeds(values: SeedValues, words: int, *systems: str) -> bool:
    return any(len(values[system][words]) < MIN_SEEDS for system in systems)


def _above(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether the mean of the seeds `a` is significantly above that of `b`."""
    enough = min(len(a), len(b)) >= MIN_SEEDS
    return enough and statistics.fmean(a) > statistics.fmean(b) and welch_p(a, b) < SIGNIFICANCE


def _clearly_above(a: Sequence[float], b: Sequence[float]) -> bool:
    return _above(a, b) and statistics.fmean(a) - statistics.fmean(b) >= CLEAR


def _percent(values: Sequence[float]) -> str:
    return f"{100 * statistics.fmean(values):.0f} %"


def _join(lengths: Any) -> str:
    return ", ".join(f"{words:.0f}" for words in lengths)
