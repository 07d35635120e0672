"""A figure of gradient norms by distance, for several decoders before and after training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captioning.inspection.axes import escape, style
from captioning.inspection.gradients import VANISHED
from captioning.utils.fonts import save_png

COLOURS = {"RNN": "#c8553d", "GRU": "#b8860b", "LSTM": "#3d6fc8", "Transformer": "#2a9d3a"}
OTHER_COLOURS = ("#8f5fc0", "#444444", "#d06fa5", "#4bb3b3", "#7f7f00")
FLOOR = 1e-14
"""Lower limit of the y axis: smaller gradients have vanished many times over."""

ROWS = {
    "inputs": "by word: gradient of a word's loss at the embedding of the word k before it",
    "states": "by state: the same at the state after that word (recurrent decoders; dashed: cell)",
    "last_word": "the caption's last word: gradient of its loss at every earlier word",
}
STAGES = {"initialisation": "At initialisation", "trained": "After training"}


def draw_gradients(report: Mapping[str, Any], path: str | os.PathLike[str], *, title: str) -> None:
    """Write a PNG with a column for each stage and a row for each kind of gradient.

    Norms are relative to those at distance 1, so that decoders with embeddings of different sizes can be compared;
    lines are means over seeds, bands their range.

    Args:
        report: `initialisation` and `trained` (either may be empty) of `gradients_report.summarize`, `common`,
            `verdict`; see captioning inspect.
    """
    stages = {stage: report[stage] for stage in STAGES if report[stage]}
    labels = list(dict.fromkeys(label for summary in stages.values() for label in summary))
    others = iter(OTHER_COLOURS * len(labels))
    colours = {label: COLOURS.get(label) or next(others) for label in labels}
    has_states = any(numbers["states"] for summary in stages.values() for numbers in summary.values())
    rows = [row for row in ROWS if row != "states" or has_states]
    figure = Figure(figsize=(1.5 + 6.6 * len(stages), 0.9 + 3.7 * len(rows)), layout="constrained", dpi=100)
    figure.suptitle(escape(title), fontsize=13, weight="bold", x=0.01, ha="left")
    grid = figure.subplots(len(rows), len(stages), squeeze=False, sharey="row")
    for row_axes, row in zip(grid, rows, strict=True):
        for axes, summary in zip(row_axes, stages.values(), strict=True):
            _draw_panel(axes, row, summary, colours, report["common"])
            axes.set_title(ROWS[row], fontsize=9.5, loc="left")
        row_axes[0].set_ylabel("gradient norm, 1 at distance 1" if row != "last_word" else "gradient norm")
    for axes, stage in zip(grid[0], stages, strict=True):
        axes.annotate(
            _headline(stage, report["verdict"].get(stage)), (0, 1), (0, 24), xycoords="axes fraction",
            textcoords="offset points", fontsize=11.5, weight="bold",
        )  # fmt: skip
        axes.legend(fontsize=9.5, frameon=False, loc="lower left")
    save_png(figure, path)


def _headline(stage: str, verdict: Mapping[str, str] | None) -> str:
    if verdict is None:
        return STAGES[stage]
    return f"{STAGES[stage]}: vanishing in the RNN and not in the LSTM? {verdict['answer'].upper()}"


def _draw_panel(
    axes: Axes, row: str, summary: Mapping[str, Any], colours: Mapping[str, str], common: int
) -> None:
    lowest = 1.0
    for label, numbers in summary.items():
        curves = numbers["states"] if row == "states" else {row: numbers[row]}
        for state, curve in curves.items():
            line = "--" if state.endswith("cell") else "-"
            seeds = f"{label} ({numbers['seeds']} seed{'s' * (numbers['seeds'] > 1)})"
            look = {"color": colours[label], "linestyle": line, "label": seeds if row != "states" else None}
            lowest = min(lowest, _draw_curve(axes, row, curve, look, common))
    axes.set_yscale("log")
    style(axes)
    if row == "last_word":
        axes.set_xlabel("position of the word in the caption (0: <start>)")
        return
    axes.set_ylim(max(FLOOR, lowest / 3), None)
    axes.set_xlabel(
        "distance k in words" + ("; dotted: fewer losses have this distance" if row == "inputs" else "")
    )
    axes.axhline(VANISHED, color="0.5", linewidth=0.8, linestyle=":")
    axes.annotate(
        "1/1000: vanished", (0, VANISHED), (4, -3), xycoords=("axes fraction", "data"),
        textcoords="offset points", va="top", fontsize=8, color="0.4",
    )  # fmt: skip


def _draw_curve(
    axes: Axes, row: str, curve: Mapping[str, Any], look: Mapping[str, Any], common: int
) -> float:
    """Draw a mean and its range; returns the lowest value drawn."""
    mean, low, high = (np.array(curve[name]) for name in ("mean", "low", "high"))
    if row != "last_word":
        low, high, mean = low / mean[1], high / mean[1], mean / mean[1]
    mean, low, high = (np.where(values > 0, values, np.nan) for values in (mean, low, high))
    x = np.arange(len(mean))
    solid = x <= common if row != "last_word" else x >= 0
    axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
    axes.plot(x[solid], mean[solid], linewidth=2, **look)
    if not solid.all():
        axes.plot(x[common:], mean[common:], ":", color=look["color"], linewidth=1.3)
    return float(np.nanmin(mean))
