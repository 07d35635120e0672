"""Figures of a comparison, drawn from its numbers with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captioning.comparison.document import Picture
from captioning.comparison.verdicts import SIGNIFICANCE

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
"""Distinguishable for colour-blind readers (Okabe and Ito 2008); markers differ as well."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
NOT_DRAWN = ("BLEU-2", "BLEU-3", "CIDEr")
"""Metrics that are in the tables only."""


def new_figure(columns: int, *, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A row of axes with light grids."""
    figure = Figure(figsize=(min(10.0, 1.2 + 3.3 * columns), height), layout="constrained", dpi=150)
    axes = list(figure.subplots(1, columns, squeeze=False).ravel())
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def to_picture(figure: Figure, name: str, *, alt: str, caption: str) -> Picture:
    """The figure as PNG; `alt` describes it for readers who cannot see it."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return Picture(f"{name}.png", content.getvalue(), alt, caption)


def system_style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def legend_below(figure: Figure, axes: Sequence[Axes], *, columns: int = 4) -> None:
    handles, labels = axes[0].get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a label with dollar signs is no formula


def seed_band(
    axis: Axes,
    x: Sequence[float],
    seeds: Sequence[Sequence[float]],
    *,
    label: str,
    number: int,
    scale: float = 100,
) -> None:
    """The mean over seeds times `scale`, and a band from the lowest to the highest seed.

    Args:
        seeds: for each x one value per seed.
        number: the system's, which chooses colour and marker.
    """
    values = [scale * np.array(point) for point in seeds]
    style = system_style(number)
    axis.plot(x, [point.mean() for point in values], label=label, linewidth=1.8, markersize=5, **style)
    low, high = [point.min() for point in values], [point.max() for point in values]
    axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def label_rows(axis: Axes, labels: Sequence[str], title: str, *, first: bool, size: float = 10) -> None:
    """One horizontal row per label from top to bottom; the labels are printed on the first axes only."""
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.set_yticks(range(len(labels)), labels, fontsize=size, parse_math=False)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.tick_params(labelleft=first)


def widen(axis: Axes, minimum: float = 1.0) -> None:
    """Make the x axis span at least `minimum`, so that negligible differences look negligible."""
    low, high = axis.get_xlim()
    if high - low < minimum:
        middle = (low + high) / 2
        axis.set_xlim(middle - minimum / 2, middle + minimum / 2)


def _drawn_metrics(comparison: Mapping[str, Any]) -> list[str]:
    return [name for name in comparison["metrics"] if name not in NOT_DRAWN]


def metric_title(name: str) -> str:
    """A metric's name as a title: `bad_ending_rate` with blanks."""
    return name.replace("_", " ")


def quality(comparison: Mapping[str, Any]) -> Picture:
    """Every seed's score and the mean, one axis per metric."""
    systems = comparison["systems"]
    names = _drawn_metrics(comparison)
    figure, axes = new_figure(len(names), height=1.6 + 0.42 * len(systems))
    for name, axis in zip(names, axes, strict=True):
        for row, system in enumerate(systems):
            scores = comparison["scales"][name] * np.array(system["scores"][name]["seeds"])
            style = system_style(row)
            axis.plot(scores, np.full(len(scores), row), linestyle="", alpha=0.45, markersize=6, **style)
            axis.plot([scores.mean()] * 2, [row - 0.3, row + 0.3], color=style["color"], linewidth=2.5)
        label_rows(axis, [system["label"] for system in systems], metric_title(name), first=axis is axes[0])
        axis.margins(x=0.12)
        widen(axis)
    means = "; ".join(
        f"{system['label']}: "
        + ", ".join(
            f"{name} {comparison['scales'][name] * system['scores'][name]['mean']:.1f}" for name in names
        )
        for system in systems
    )
    return to_picture(
        figure,
        "quality",
        alt=f"Scores of each seed and their means. {means}.",
        caption="Each mark is a seed, each bar the mean over seeds (times 100). The axes do not begin at 0.",
    )


def differences(comparison: Mapping[str, Any]) -> Picture:
    """The difference of every pair with its interval, one axis per metric."""
    pairs, primary = comparison["pairs"], comparison["primary"]
    names, scales = _drawn_metrics(comparison), comparison["scales"]
    labels = {system["name"]: system["label"] for system in comparison["systems"]}
    figure, axes = new_figure(len(names), height=1.5 + 0.42 * len(pairs))
    for name, axis in zip(names, axes, strict=True):
        axis.axvline(0, color="#555555", linewidth=1)
        for row, pair in enumerate(pairs):
            test = pair["metrics"][name]
            fill = COLOURS[0] if test.get("holm", 1) < SIGNIFICANCE else "white"
            low, middle, high = (scales[name] * test[key] for key in ("low", "difference", "high"))
            axis.plot([low, high], [row, row], color=COLOURS[0], linewidth=2)
            axis.plot(middle, row, "o", color=COLOURS[0], markerfacecolor=fill)
        rows = [f"{labels[pair['a']]} −\n{labels[pair['b']]}" for pair in pairs]
        label_rows(axis, rows, metric_title(name), first=axis is axes[0], size=8)
        widen(axis)
    tests = [(f"{labels[pair['a']]} minus {labels[pair['b']]}", pair["metrics"][primary]) for pair in pairs]
    keys = ("difference", "low", "high")
    numbers = "; ".join(
        "{}: {:.1f} ({:.1f} to {:.1f})".format(pair, *(scales[primary] * test[key] for key in keys))
        for pair, test in tests
    )
    return to_picture(
        figure,
        "differences",
        alt=f"Differences between systems with intervals. In {primary}: {numbers}.",
        caption=f"Difference of the mean scores (times 100) with its 95 % interval. Filled marks: p of {primary} below "
        "0.05 after Holm's correction; other metrics are exploratory.",
    )


def quality_by_length(comparison: Mapping[str, Any]) -> Picture:
    """Scores against the mean length of the references."""
    rows, systems, primary = comparison["by_length"], comparison["systems"], comparison["primary"]
    scale = comparison["scales"][primary]
    figure, axes = new_figure(2)
    for name, axis in zip([primary, "BLEU-4"], axes, strict=True):
        for number, system in enumerate(systems):
            seeds = [row["systems"][system["name"]][name]["seeds"] for row in rows]
            seed_band(
                axis,
                [row["mean"] for row in rows],
                seeds,
                label=system["label"],
                number=number,
                scale=comparison["scales"][name],
            )
        axis.set_title(metric_title(name), fontsize=10)
        axis.set_xlabel("mean words of an image's references")
        axis.set_ylim(bottom=0, top=max(1.0, axis.get_ylim()[1]))
    legend_below(figure, axes)
    ends = [
        [row["systems"][system["name"]][primary]["mean"] for row in (rows[0], rows[-1])] for system in systems
    ]
    numbers = "; ".join(
        f"{system['label']} from {scale * first:.1f} on the shortest to {scale * last:.1f} on the longest"
        for system, (first, last) in zip(systems, ends, strict=True)
    )
    return to_picture(
        figure,
        "lengths",
        alt=f"{primary} and BLEU-4 by reference length. {primary}: {numbers}.",
        caption="Groups of equally many images by the mean length of their references (scores times 100); bands span "
        "the seeds. CIDEr's document frequencies are those of the whole split.",
    )


def learning_curves(comparison: Mapping[str, Any]) -> Picture | None:
    """The validation score against steps, seconds and FLOPs; None if no run has a record of its training."""
    systems = comparison["systems"]
    points = [point for system in systems for curve in system["curves"] for point in curve]
    titles = {"step": "steps", "seconds": "seconds of training", "teraflop": "TFLOP of products (decoder)"}
    keys = [key for key in titles if any(key in point for point in points)]
    if not keys:
        return None
    scale = comparison["scales"].get(comparison["metric"], 100.0)
    figure, axes = new_figure(len(keys))
    for key, axis in zip(keys, axes, strict=True):
        for number, system in enumerate(systems):
            for row, curve in enumerate(system["curves"]):
                known = [(point[key], scale * point["score"]) for point in curve if key in point]
                label = system["label"] if row == 0 else None
                style = system_style(number)
                if known:
                    x, y = zip(*known, strict=True)
                    axis.plot(x, y, label=label, alpha=0.75, linewidth=1.4, markersize=4, **style)
        axis.set_xlabel(titles[key])
    axes[0].set_ylabel(f"validation {comparison['metric']} times {scale:g}")
    legend_below(figure, axes)
    ends = []
    for system in systems:
        if last := [curve[-1] for curve in system["curves"] if curve]:
            ends.append(
                f"{system['label']} ends at {scale * np.mean([point['score'] for point in last]):.1f}"
            )
            if "seconds" in last[0]:
                ends[-1] += f" after {np.mean([point['seconds'] for point in last]):.0f} s"
    return to_picture(
        figure,
        "curves",
        alt=f"Learning curves, validation {comparison['metric']}: {'; '.join(ends)}.",
        caption="One line per seed. Seconds are the training's own without validation, on a machine that may have had "
        "other work; FLOPs are those of the decoder's products, forward and backward.",
    )


def bars(
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], name: str, *, alt: str, caption: str
) -> Picture:
    """One axis per (title, [(label, value), ...]), one bar per label."""
    figure, axes = new_figure(len(rows), height=1.4 + 0.42 * max(len(values) for _, values in rows))
    for (title, values), axis in zip(rows, axes, strict=True):
        numbers = [value for _, value in values]
        colours = [system_style(number)["color"] for number in range(len(values))]
        drawn = axis.barh(range(len(values)), numbers, color=colours)
        texts = [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in numbers]
        axis.bar_label(drawn, texts, padding=3, fontsize=8)
        label_rows(axis, [label for label, _ in values], title, first=axis is axes[0])
        axis.margins(x=0.25)
    return to_picture(figure, name, alt=alt, caption=caption)
