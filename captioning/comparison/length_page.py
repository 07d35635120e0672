"""The length study's part of a report: claims with their figures, and tables by caption length."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from captioning.comparison.document import Block, Heading, Picture, Table, Text
from captioning.comparison.figures import legend_below, new_figure, seed_band, system_style, to_picture
from captioning.comparison.length_claims import CHANCE, DEFINITIONS, Claim

TABLES = {
    "quality": ("{metric}, times 100", 100),
    "recall": ("Final names predicted correctly, given the reference's words before them, %", 100),
    "agreement": ("Captions that end with the name they begin with, %", 100),
}
COST_TABLES = {
    "train_us_per_token": "Training, microseconds per token",
    "train_kb_per_token": "Training, kB per token",
    "decode_ms_per_word": "Decoding, milliseconds for one more word of 16 captions",
}


def blocks(study: Mapping[str, Any], claims: Sequence[Claim]) -> list[Block]:
    """Claims with their figures, then the tables.

    Args:
        study: as for `length_claims.answer_claims`, with "agreement" (`SeedValues`).
    """
    figures = (memory_figure(study), training_cost_figure(study), long_captions_figure(study))
    result: list[Block] = [Heading("Three claims")]
    for claim, figure in zip(claims, figures, strict=True):
        result += [Heading(f"“{claim.claim}”: {claim.answer}", 3), Text(claim.reason)]
        if figure:
            result.append(figure)
    result += [Text(DEFINITIONS, "note"), Heading("By caption length")]
    for key, (title, factor) in TABLES.items():
        if any(study[key].values()):
            result.append(_table(study, key, title.format(metric=study["metric"]), factor))
    if study["costs"]:
        result += [_cost_table(study, key, title) for key, title in COST_TABLES.items()]
    return result


def _table(study: Mapping[str, Any], key: str, title: str, factor: float) -> Table:
    rows = [
        [f"{words} words", *(_mean(study[key].get(name, {}).get(words), factor) for name in study["labels"])]
        for words in study["lengths"]
    ]
    return Table(["", *study["labels"].values()], rows, title)


def _mean(values: Sequence[float] | None, factor: float) -> str:
    if not values:
        return ""
    mean = f"{factor * statistics.fmean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {factor * statistics.stdev(values):.1f}"


def _cost_table(study: Mapping[str, Any], key: str, title: str) -> Table:
    costs = study["costs"]
    rows = [
        [f"{at_length[0]['words']:.0f} words", *(f"{row[key]:.3g}" for row in at_length)]
        for at_length in zip(*costs.values(), strict=True)
    ]
    return Table(["", *(study["labels"][name] for name in costs)], rows, title)


def memory_figure(study: Mapping[str, Any]) -> Picture | None:
    """How often the final name is predicted and how often captions repeat their first name, against length."""
    titles = {"recall": "final name predicted, %", "agreement": "captions that repeat the name, %"}
    keys = [key for key in titles if any(study[key].values())]
    if not keys:
        return None
    figure, axes = new_figure(2)
    for key, axis in zip(keys, axes, strict=False):
        _seed_lines(axis, study, key)
        axis.axhline(100 * CHANCE, color="#555555", linewidth=1, linestyle=":", label="chance")
        axis.set_ylim(-4, 104)
        axis.set_title(titles[key], fontsize=10)
    for axis in axes[len(keys) :]:
        axis.set_visible(False)
    legend_below(figure, axes, columns=5)
    return to_picture(
        figure,
        "memory",
        alt=f"{titles[keys[0]]} by caption length: {_first_and_last(study, keys[0])}.",
        caption="The last word of a caption is the name in its first sentence, which nothing in between repeats. Left: "
        "predicted from the reference's words; right: in captions of the search, which may use the same name for "
        "every image. Bands span the seeds.",
    )


def training_cost_figure(study: Mapping[str, Any]) -> Picture | None:
    """Training time and memory per token against length."""
    if not study["costs"]:
        return None
    titles = {"train_us_per_token": "training, µs per token", "train_kb_per_token": "training, kB per token"}
    figure, axes = new_figure(2)
    for (key, title), axis in zip(titles.items(), axes, strict=True):
        _cost_lines(axis, study, key)
        axis.set_title(title, fontsize=10)
    legend_below(figure, axes)
    key = "train_us_per_token"
    numbers = "; ".join(
        f"{study['labels'][name]} from {rows[0][key]:.0f} at {rows[0]['words']:.0f} words to {rows[-1][key]:.0f} at "
        f"{rows[-1]['words']:.0f}"
        for name, rows in study["costs"].items()
    )
    return to_picture(
        figure,
        "training_cost",
        alt=f"{titles[key]}: {numbers}.",
        caption="Forward and backward pass over 80 captions of exactly that length, decoders of matched size, "
        "measured in turns.",
    )


def long_captions_figure(study: Mapping[str, Any]) -> Picture | None:
    """Quality and decoding time against length."""
    if not study["costs"] or not any(study["quality"].values()):
        return None
    figure, axes = new_figure(2)
    _seed_lines(axes[0], study, "quality")
    axes[0].set_title(f"{study['metric']}, times 100", fontsize=10)
    _cost_lines(axes[1], study, "decode_ms_per_word")
    axes[1].set_title("decoding, ms per word (16 captions)", fontsize=10)
    legend_below(figure, axes)
    return to_picture(
        figure,
        "long",
        alt=f"Quality and decoding time by caption length. {study['metric']}: {_first_and_last(study, 'quality')}.",
        caption="Left: bands span the seeds. CIDEr-D's document frequencies differ from length to length: compare "
        "systems, not lengths. Right: greedy search, every caption exactly that long.",
    )


def _seed_lines(axis: Axes, study: Mapping[str, Any], key: str) -> None:
    for number, (name, label) in enumerate(study["labels"].items()):
        by_length = _by_length(study, key, name)
        if by_length:
            seed_band(axis, list(by_length), list(by_length.values()), label=label, number=number)
    _length_axis(axis, study["lengths"])


def _cost_lines(axis: Axes, study: Mapping[str, Any], key: str) -> None:
    for number, (name, label) in enumerate(study["labels"].items()):
        rows = study["costs"].get(name, [])
        x, y = [row["words"] for row in rows], [row[key] for row in rows]
        axis.plot(x, y, label=label, linewidth=1.8, markersize=5, **system_style(number))
    axis.set_ylim(bottom=0)
    _length_axis(axis, study["lengths"])


def _length_axis(axis: Axes, lengths: Sequence[int]) -> None:
    axis.set_xscale("log")
    axis.set_xticks(list(lengths), [str(words) for words in lengths])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("words of a caption")


def _by_length(study: Mapping[str, Any], key: str, name: str) -> dict[int, Sequence[float]]:
    """Length -> one value per seed, for the lengths that are measured."""
    values = study[key].get(name, {})
    return {words: values[words] for words in study["lengths"] if values.get(words)}


def _first_and_last(study: Mapping[str, Any], key: str) -> str:
    texts = []
    for name, label in study["labels"].items():
        if by_length := _by_length(study, key, name):
            (first, *_), (*_, last) = by_length, by_length
            means = [100 * statistics.fmean(by_length[words]) for words in (first, last)]
            texts.append(f"{label} {means[0]:.0f} at {first} words and {means[1]:.0f} at {last}")
    return "; ".join(texts)
