"""The length study's part of a report: figures, tables, and three claims answered from its numbers. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from captioning.comparison.document import Block, Heading, Picture, Table, Text
from captioning.comparison.figures import band, figure, legend_below, picture, style
from captioning.datasets.shapes_grammar import NAMES, dependency
from captioning.text.tokenizer import tokenize

CHANCE = 1 / len(NAMES)
CLEAR = 0.1
"""Shares this far apart count as different, given that no seeds overlap."""
HEAVIER, ALIKE = 1.25, 1.1
"""Ratios of cost: from the one on it is heavier, up to the other alike."""

Numbers = Mapping[str, Mapping[int, Sequence[float]]]
"""System -> words -> a value a seed."""


def agreement(captions: Sequence[str]) -> float:
    """The share of captions whose last word is the name that is their first."""
    found = [dependency(tokenize(caption)) for caption in captions]
    return statistics.fmean(each.last is not None and each.first == each.last for each in found)


class Claim(NamedTuple):
    """A claim, the answer (yes, no, depends, open, not measured) and the numbers that give it."""

    claim: str
    answer: str
    why: str


def claims(study: Mapping[str, Any]) -> list[Claim]:
    """The three claims, as far as the systems rnn, lstm and transformer are there.

    Args:
        study: "recall" and "quality" (`Numbers`), "costs" (system -> rows of `length.cost_by_length`),
            "labels" and "lengths".
    """
    return [_carry(study), _heavy(study), _long(study)]


def _carry(study: Mapping[str, Any]) -> Claim:
    claim = "LSTMs carry context that RNNs lose"
    recall = study["recall"]
    lengths = [words for words in study["lengths"] if _both(recall, words, "lstm", "rnn")]
    if not lengths:
        return Claim(claim, "not measured", "It takes systems named `lstm` and `rnn`.")
    won = [words for words in lengths if _above(recall["lstm"][words], recall["rnn"][words])]
    lost = [words for words in lengths if _above(recall["rnn"][words], recall["lstm"][words])]
    numbers = "; ".join(
        f"{words} words: LSTM {_percent(recall['lstm'][words])}, RNN {_percent(recall['rnn'][words])}"
        for words in lengths
    )
    why = f"Last name foreseen, by length ({_percent([CHANCE])} is chance): {numbers}."
    if not won:
        learned = [words for words in lengths if statistics.fmean(recall["rnn"][words]) >= CHANCE + CLEAR]
        if not learned and not lost:
            return Claim(claim, "open", f"Neither remembers more than chance would at any length. {why}")
        return Claim(claim, "no", f"The LSTM is clearly ahead at no length tried. {why}")
    if lost or lengths[-1] not in won:
        left = f"not at {_words(each for each in lengths if each not in won)}"
        return Claim(claim, "depends", f"The LSTM is clearly ahead at {_words(won)}, {left}. {why}")
    return Claim(claim, "yes", f"The LSTM is clearly ahead at {_words(won)}. {why}")


def _heavy(study: Mapping[str, Any]) -> Claim:
    claim = "LSTMs are computationally heavy to train"
    costs = study["costs"]
    if not {"lstm", "transformer"} <= costs.keys():
        return Claim(claim, "not measured", "It takes systems named `lstm` and `transformer`.")
    others = [name for name in costs if name != "lstm"]
    ratios = {
        name: [
            ours["train_us_per_token"] / theirs["train_us_per_token"]
            for ours, theirs in zip(costs["lstm"], costs[name], strict=True)
        ]
        for name in others
    }
    words = [row["words"] for row in costs["lstm"]]
    said = "; ".join(
        f"{ratios[name][0]:.2f} times the {study['labels'][name]}'s at {words[0]:.0f} words and "
        f"{ratios[name][-1]:.2f} times at {words[-1]:.0f}"
        for name in others
    )
    why = f"Seconds a token in training, at matched size: {said}."
    against = ratios["transformer"]
    if min(against) >= HEAVIER:
        return Claim(claim, "yes", f"At every length it takes longer than the Transformer. {why}")
    if max(against) <= ALIKE:
        return Claim(claim, "no", f"At no length does it take longer than the Transformer. {why}")
    heavy = [each for each, ratio in zip(words, against, strict=True) if ratio >= HEAVIER]
    where = f"Clearly heavier than the Transformer at {_words(heavy)}" if heavy else "Nowhere much heavier"
    return Claim(claim, "depends", f"{where} only. {why}")


def _long(study: Mapping[str, Any]) -> Claim:
    claim = "Transformers are better for extremely long sequences"
    recall, quality, costs = study["recall"], study["quality"], study["costs"]
    longest = study["lengths"][-1]
    if not (_both(quality, longest, "lstm", "transformer") and {"lstm", "transformer"} <= costs.keys()):
        return Claim(claim, "not measured", "It takes systems named `lstm` and `transformer`.")
    ours, theirs = quality["transformer"][longest], quality["lstm"][longest]
    better = {study["metric"]: _apart(ours, theirs) and statistics.fmean(ours) > statistics.fmean(theirs)}
    worse = _apart(ours, theirs) and statistics.fmean(ours) < statistics.fmean(theirs)
    means = [100 * statistics.fmean(each) for each in (ours, theirs)]
    said = f"{study['metric']} {means[0]:.1f} against the LSTM's {means[1]:.1f}"
    if _both(recall, longest, "lstm", "transformer"):
        ours, theirs = recall["transformer"][longest], recall["lstm"][longest]
        better["memory"] = _above(ours, theirs)
        worse = worse or _above(theirs, ours)
        said += f", last name foreseen {_percent(ours)} against {_percent(theirs)}"
    transformer, lstm = costs["transformer"][-1], costs["lstm"][-1]
    train = transformer["train_us_per_token"] / lstm["train_us_per_token"]
    decode = transformer["decode_ms_per_word"] / lstm["decode_ms_per_word"]
    grown = [
        rows[-1]["decode_ms_per_word"] / rows[0]["decode_ms_per_word"]
        for rows in (costs["transformer"], costs["lstm"])
    ]
    why = (
        f"At {longest} words: {said}; {train:.2f} times the LSTM's seconds a token in training and {decode:.2f} times "
        f"its seconds a word in decoding, which from {study['lengths'][0]} words on grew {grown[0]:.1f}-fold, the "
        f"LSTM's {grown[1]:.1f}-fold."
    )
    if not worse and not any(better.values()):
        return Claim(claim, "open", f"Not told apart. {why}")
    if worse:
        return Claim(claim, "depends" if any(better.values()) else "no", f"Not clearly better. {why}")
    dear = [name for name, ratio in (("training", train), ("decoding", decode)) if ratio > ALIKE]
    if dear or not all(better.values()):
        but = f"but dearer in {' and '.join(dear)}" if dear else "but not in all that was measured"
        return Claim(
            claim,
            "depends",
            f"Better in {' and '.join(name for name, is_so in better.items() if is_so)}, {but}. {why}",
        )
    return Claim(claim, "yes", f"Better and no dearer. {why}")


def _both(numbers: Numbers, words: int, *names: str) -> bool:
    return all(numbers.get(name, {}).get(words) for name in names)


def _apart(a: Sequence[float], b: Sequence[float]) -> bool:
    """No seed of one is among those of the other."""
    return min(a) > max(b) or max(a) < min(b)


def _above(a: Sequence[float], b: Sequence[float]) -> bool:
    return _apart(a, b) and statistics.fmean(a) - statistics.fmean(b) >= CLEAR


def _percent(values: Sequence[float]) -> str:
    return f"{100 * statistics.fmean(values):.0f} %"


def _words(values: Any) -> str:
    return ", ".join(f"{each:.0f}" for each in values) + " words"


def headline(answers: Sequence[Claim]) -> str:
    """The claims and their answers in one sentence."""
    said = "; ".join(f"“{each.claim}”: **{each.answer}**" for each in answers)
    return (
        f"What these runs say of three claims: {said}. Of these sizes, this budget and drawn scenes, no more."
    )


def blocks(study: Mapping[str, Any]) -> list[Block]:
    """Claims with their figures, then the tables."""
    answers = claims(study)
    figures = (recall_figure(study), training_figure(study), long_figure(study))
    result: list[Block] = [Heading("Three claims")]
    for claim, drawn in zip(answers, figures, strict=True):
        result += [Heading(f"“{claim.claim}”: {claim.answer}", 3), Text(claim.why)]
        if drawn:
            result.append(drawn)
    result += [
        Text(
            f"“Clearly”: means at least {100 * CLEAR:.0f} points apart and no seed of one among those of the other. "
            f"Heavier: from {HEAVIER} times on; alike: up to {ALIKE} times.",
            "note",
        ),
        Heading("By caption length"),
    ]
    for key, title, times in (
        ("quality", f"{study['metric']}, times 100", 100),
        ("recall", "Last name foreseen from the reference's words before it, %", 100),
        ("agreement", "Captions that end with the name they begin with, %", 100),
    ):
        if any(study[key].values()):
            result.append(_table(study, key, title, times))
    for key, title in (
        ("train_us_per_token", "Training, microseconds a token"),
        ("train_kb_per_token", "Training, kB a token"),
        ("decode_ms_per_word", "Decoding, milliseconds for one more word of 16 captions"),
    ):
        if study["costs"]:
            result.append(_cost_table(study, key, title))
    return result


def _table(study: Mapping[str, Any], key: str, title: str, times: float) -> Table:
    names = list(study["labels"])
    rows = []
    for words in study["lengths"]:
        cells = []
        for name in names:
            values = study[key].get(name, {}).get(words)
            cells.append(_mean(values, times) if values else "")
        rows.append([f"{words} words", *cells])
    return Table(["", *(study["labels"][name] for name in names)], rows, title)


def _mean(values: Sequence[float], times: float) -> str:
    mean = f"{times * statistics.fmean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {times * statistics.stdev(values):.1f}"


def _cost_table(study: Mapping[str, Any], key: str, title: str) -> Table:
    costs = study["costs"]
    first = next(iter(costs.values()))
    return Table(
        ["", *(study["labels"][name] for name in costs)],
        [
            [f"{row['words']:.0f} words", *(f"{costs[name][number][key]:.3g}" for name in costs)]
            for number, row in enumerate(first)
        ],
        title,
    )


def recall_figure(study: Mapping[str, Any]) -> Picture | None:
    """The last name foreseen and the captions that keep it, against length."""
    shown = [
        (key, title)
        for key, title in (("recall", "last name foreseen, %"), ("agreement", "captions that keep it, %"))
        if any(study[key].values())
    ]
    if not shown:
        return None
    drawn, axes = figure(len(shown) if len(shown) > 1 else 2)
    for (key, title), axis in zip(shown, axes, strict=False):
        for number, (name, label) in enumerate(study["labels"].items()):
            at = [words for words in study["lengths"] if study[key].get(name, {}).get(words)]
            if at:
                band(axis, at, [study[key][name][words] for words in at], label=label, number=number)
        axis.axhline(100 * CHANCE, color="#555555", linewidth=1, linestyle=":", label="chance")
        _by_words(axis, study["lengths"])
        axis.set_ylim(-4, 104)
        axis.set_title(title, fontsize=10)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    legend_below(drawn, axes, columns=5)
    said = _ends(study, shown[0][0])
    return picture(
        drawn,
        "memory",
        alt=f"{shown[0][1]} by caption length: {said}.",
        caption="The caption's last word is the name in its first sentence; nothing between says it. Left: foreseen "
        "from the reference's own words; right: in captions found by the search, "
        "which may name the same one each time. Bands span the seeds.",
    )


def training_figure(study: Mapping[str, Any]) -> Picture | None:
    return _cost_figure(
        study,
        "training_cost",
        (("train_us_per_token", "training, µs a token"), ("train_kb_per_token", "training, kB a token")),
        "Forward and backward over 80 captions of exactly that length, decoders of matched size, measured in turns.",
    )


def long_figure(study: Mapping[str, Any]) -> Picture | None:
    """Quality and decoding cost against length."""
    if not study["costs"] or not any(study["quality"].values()):
        return None
    drawn, axes = figure(2)
    for number, (name, label) in enumerate(study["labels"].items()):
        at = [words for words in study["lengths"] if study["quality"].get(name, {}).get(words)]
        if at:
            band(axes[0], at, [study["quality"][name][words] for words in at], label=label, number=number)
        _cost_line(axes[1], study, name, "decode_ms_per_word", label, number)
    axes[0].set_title(f"{study['metric']}, times 100", fontsize=10)
    axes[1].set_title("decoding, ms a word (16 captions)", fontsize=10)
    axes[1].set_ylim(bottom=0)
    for axis in axes:
        _by_words(axis, study["lengths"])
    legend_below(drawn, axes)
    return picture(
        drawn,
        "long",
        alt=f"Quality and decoding cost by caption length. {study['metric']}: {_ends(study, 'quality')}.",
        caption="Left: bands span the seeds. CIDEr-D's document frequencies differ from length to length: compare "
        "systems, not lengths. Right: greedy search, every caption exactly that long.",
    )


def _cost_figure(
    study: Mapping[str, Any], name: str, shown: Sequence[tuple[str, str]], caption: str
) -> Picture | None:
    if not study["costs"]:
        return None
    drawn, axes = figure(len(shown))
    for (key, title), axis in zip(shown, axes, strict=True):
        for number, (system, label) in enumerate(study["labels"].items()):
            _cost_line(axis, study, system, key, label, number)
        axis.set_title(title, fontsize=10)
        axis.set_ylim(bottom=0)
        _by_words(axis, study["lengths"])
    legend_below(drawn, axes)
    key = shown[0][0]
    said = "; ".join(
        f"{study['labels'][system]} from {rows[0][key]:.0f} at {rows[0]['words']:.0f} words to {rows[-1][key]:.0f} at "
        f"{rows[-1]['words']:.0f}"
        for system, rows in study["costs"].items()
    )
    return picture(drawn, name, alt=f"{shown[0][1]}: {said}.", caption=caption)


def _cost_line(axis: Any, study: Mapping[str, Any], system: str, key: str, label: str, number: int) -> None:
    rows = study["costs"].get(system, [])
    axis.plot(
        [row["words"] for row in rows],
        [row[key] for row in rows],
        label=label,
        linewidth=1.8,
        markersize=5,
        **style(number),
    )


def _by_words(axis: Any, lengths: Sequence[int]) -> None:
    axis.set_xscale("log")
    axis.set_xticks(list(lengths), [str(each) for each in lengths])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("words of a caption")


def _ends(study: Mapping[str, Any], key: str) -> str:
    said = []
    for name, label in study["labels"].items():
        at = [words for words in study["lengths"] if study[key].get(name, {}).get(words)]
        if at:
            first, last = (100 * float(np.mean(study[key][name][words])) for words in (at[0], at[-1]))
            said.append(f"{label} {first:.0f} at {at[0]} words and {last:.0f} at {at[-1]}")
    return "; ".join(said)
