"""The figures of a comparison, drawn from its numbers. Knows no captions; PNG bytes out."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captioning.comparison.document import Picture

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
"""Told apart by the colour-blind (Okabe and Ito 2008); markers differ as well."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SHOWN = ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D")


def figure(columns: int, *, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A row of axes with light grids."""
    drawn = Figure(figsize=(min(10.0, 1.2 + 3.3 * columns), height), layout="constrained", dpi=150)
    axes = list(drawn.subplots(1, columns, squeeze=False).ravel())
    for each in axes:
        each.grid(alpha=0.25, linewidth=0.6)
        each.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def picture(drawn: Figure, name: str, *, alt: str, caption: str) -> Picture:
    content = io.BytesIO()
    drawn.savefig(content, format="png")
    return Picture(f"{name}.png", content.getvalue(), alt, caption)


def metric_name(name: str) -> str:
    """The title of a metric: `bad_ending_rate` with blanks."""
    return name.replace("_", " ")


def widened(axis: Axes, least: float = 1.0) -> None:
    """Show a range of `least` at least: figures of next to nothing would look like differences."""
    low, high = axis.get_xlim()
    if high - low < least:
        middle = (low + high) / 2
        axis.set_xlim(middle - least / 2, middle + least / 2)


def style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def legend_below(drawn: Figure, axes: Sequence[Axes], *, columns: int = 4) -> None:
    handles, labels = axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), frameon=False)


def quality(found: Mapping[str, Any]) -> Picture:
    """Every seed's score and the mean, an axis a metric."""
    names = [name for name in SHOWN if name in found["systems"][0]["scores"]]
    drawn, axes = figure(len(names), height=1.6 + 0.42 * len(found["systems"]))
    said = []
    for name, axis in zip(names, axes, strict=True):
        for row, system in enumerate(found["systems"]):
            scores = 100 * np.array(system["scores"][name]["seeds"])
            look = style(row)
            axis.plot(
                scores,
                np.full(len(scores), row),
                look["marker"],
                color=look["color"],
                alpha=0.45,
                markersize=6,
            )
            axis.plot([scores.mean()] * 2, [row - 0.3, row + 0.3], color=look["color"], linewidth=2.5)
        axis.set_title(metric_name(name), fontsize=10)
        axis.set_yticks(range(len(found["systems"])), [system["label"] for system in found["systems"]])
        axis.set_ylim(len(found["systems"]) - 0.5, -0.5)
        axis.margins(x=0.12)
        widened(axis)
        if axis is not axes[0]:
            axis.tick_params(labelleft=False)
    for system in found["systems"]:
        numbers = ", ".join(f"{name} {100 * system['scores'][name]['mean']:.1f}" for name in names)
        said.append(f"{system['label']}: {numbers}")
    return picture(
        drawn,
        "quality",
        alt="Scores of each seed and their means. " + "; ".join(said) + ".",
        caption="Each mark is a seed, each bar the mean over seeds (times 100). The axes do not begin at 0.",
    )


def differences(found: Mapping[str, Any]) -> Picture:
    """Each pair's difference on each metric with its interval."""
    names = [name for name in SHOWN if name in found["systems"][0]["scores"]]
    labels = {system["name"]: system["label"] for system in found["systems"]}
    drawn, axes = figure(len(names), height=1.5 + 0.42 * len(found["pairs"]))
    said = []
    for name, axis in zip(names, axes, strict=True):
        axis.axvline(0, color="#555555", linewidth=1)
        for row, pair in enumerate(found["pairs"]):
            test = pair["metrics"][name]
            certain = test["holm"] < 0.05
            axis.plot([100 * test["low"], 100 * test["high"]], [row, row], color="#0072B2", linewidth=2)
            axis.plot(
                100 * test["difference"],
                row,
                "o",
                color="#0072B2",
                markerfacecolor="#0072B2" if certain else "white",
            )
        axis.set_title(metric_name(name), fontsize=10)
        pairs = [
            f"{labels[pair['a']]} −\\n{labels[pair['b']]}".replace("\\n", "\n") for pair in found["pairs"]
        ]
        axis.set_yticks(range(len(pairs)), pairs, fontsize=8)
        axis.set_ylim(len(pairs) - 0.5, -0.5)
        widened(axis)
        if axis is not axes[0]:
            axis.tick_params(labelleft=False)
    for pair in found["pairs"]:
        test = pair["metrics"][found["primary"]]
        said.append(
            f"{labels[pair['a']]} minus {labels[pair['b']]}: {100 * test['difference']:.1f} "
            f"({100 * test['low']:.1f} to {100 * test['high']:.1f})"
        )
    return picture(
        drawn,
        "differences",
        alt=f"Differences between systems with intervals. In {found['primary']}: " + "; ".join(said) + ".",
        caption="Difference of the seeds' pooled scores (times 100) with its 95 % bootstrap interval over images. "
        "A filled mark: below 0.05 after Holm's correction.",
    )


def lengths(found: Mapping[str, Any]) -> Picture:
    """Scores by the length of the references."""
    rows, names = found["by_length"], [found["primary"], "BLEU-4"]
    drawn, axes = figure(2)
    for name, axis in zip(names, axes, strict=True):
        for number, system in enumerate(found["systems"]):
            spreads = [row["systems"][system["name"]][name] for row in rows]
            at = [row["mean"] for row in rows]
            band(axis, at, [each["seeds"] for each in spreads], label=system["label"], number=number)
        axis.set_title(metric_name(name), fontsize=10)
        axis.set_xlabel("mean words of an image's references")
        axis.set_ylim(bottom=0, top=max(1.0, axis.get_ylim()[1]))
    legend_below(drawn, axes)
    primary = found["primary"]
    said = "; ".join(
        f"{system['label']} from {100 * rows[0]['systems'][system['name']][primary]['mean']:.1f} on the shortest to "
        f"{100 * rows[-1]['systems'][system['name']][primary]['mean']:.1f} on the longest"
        for system in found["systems"]
    )
    return picture(
        drawn,
        "lengths",
        alt=f"{primary} and BLEU-4 by reference length. {primary}: {said}.",
        caption="Images in parts of equal number by the mean length of their references (times 100); the band spans "
        "the seeds. CIDEr's document frequencies are the whole split's.",
    )


def band(
    axis: Axes,
    at: Sequence[float],
    seeds: Sequence[Sequence[float]],
    *,
    label: str,
    number: int,
    times: float = 100,
) -> None:
    """The mean over seeds, and a band from the lowest to the highest."""
    values = [times * np.array(each) for each in seeds]
    look = style(number)
    axis.plot(at, [each.mean() for each in values], label=label, linewidth=1.8, markersize=5, **look)
    low, high = [each.min() for each in values], [each.max() for each in values]
    axis.fill_between(at, low, high, color=look["color"], alpha=0.15, linewidth=0)


def curves(found: Mapping[str, Any]) -> Picture | None:
    """The validation score against steps, seconds and FLOPs; None where no run has a record of its training."""
    ways = [
        ("step", "steps"),
        ("seconds", "seconds of training"),
        ("teraflop", "TFLOP of products (decoder)"),
    ]
    points = [point for system in found["systems"] for curve in system.get("curves", []) for point in curve]
    ways = [way for way in ways if any(way[0] in point for point in points)]
    if not ways:
        return None
    drawn, axes = figure(len(ways))
    for (key, title), axis in zip(ways, axes, strict=True):
        for number, system in enumerate(found["systems"]):
            for row, curve in enumerate(system["curves"]):
                there = [(point[key], 100 * point["score"]) for point in curve if key in point]
                if there:
                    axis.plot(
                        *zip(*there, strict=True),
                        label=system["label"] if row == 0 else None,
                        alpha=0.75,
                        linewidth=1.4,
                        markersize=4,
                        **style(number),
                    )
        axis.set_xlabel(title)
    axes[0].set_ylabel(f"validation {found['metric']} times 100")
    legend_below(drawn, axes)
    said = []
    for system in found["systems"]:
        ends = [curve[-1] for curve in system["curves"] if curve]
        if ends:
            said.append(
                f"{system['label']} ends at {100 * np.mean([end['score'] for end in ends]):.1f}"
                + (
                    f" after {np.mean([end['seconds'] for end in ends]):.0f} s"
                    if "seconds" in ends[0]
                    else ""
                )
            )
    return picture(
        drawn,
        "curves",
        alt=f"Learning curves, validation {found['metric']}: " + "; ".join(said) + ".",
        caption="A line is a seed. Seconds are the training's own, validation left out, on a machine that may have had "
        "other work; FLOPs are those of the decoder's products, forward and backward.",
    )


def bars(
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], name: str, *, alt: str, caption: str
) -> Picture:
    """An axis for each (title, [(label, value)]), a bar a system."""
    drawn, axes = figure(len(rows), height=1.4 + 0.42 * max(len(values) for _, values in rows))
    for (title, values), axis in zip(rows, axes, strict=True):
        numbers = [value for _, value in values]
        colours = [style(number)["color"] for number in range(len(values))]
        drawn_bars = axis.barh(range(len(values)), numbers, color=colours)
        axis.bar_label(
            drawn_bars,
            [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in numbers],
            padding=3,
            fontsize=8,
        )
        axis.set_yticks(range(len(values)), [label for label, _ in values])
        axis.set_ylim(len(values) - 0.5, -0.5)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.25)
        if axis is not axes[0]:
            axis.tick_params(labelleft=False)
    return picture(drawn, name, alt=alt, caption=caption)
