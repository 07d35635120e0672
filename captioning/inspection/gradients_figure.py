"""One figure of a gradient study: what is left of a word's gradient, by distance. Knows its report, no model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captioning.inspection.gradients import VANISHED
from captioning.utils.files import atomic_write

COLOURS = {"RNN": "#c8553d", "GRU": "#b8860b", "LSTM": "#3d6fc8", "Transformer": "#2a9d3a"}
OTHERS = ("#8f5fc0", "#444444", "#d06fa5", "#4bb3b3", "#7f7f00")
FLOOR = 1e-14
"""Nothing is drawn below: what is smaller has vanished many times over."""

ROWS = {
    "inputs": "by word: how strongly a word's loss is felt at the embedding of the word k before it",
    "states": "by state: the same at the state after that word (recurrent decoders; dashed: cell)",
    "last_word": "the caption's last word: how strongly its loss is felt at each word before it",
}


def draw_gradients(told: Mapping[str, Any], path: str | os.PathLike[str], *, title: str) -> None:
    """Write a PNG: a column a stage (at initialisation, after training), a row a question.

    Norms are drawn over their own at distance 1, so that decoders whose words' vectors have different sizes
    compare; lines are means over seeds, bands their range.

    Args:
        told: `initialisation` and `trained` (either may be empty), `common`, `verdict`; see captioning inspect.
    """
    stages = {stage: told[stage] for stage in ("initialisation", "trained") if told[stage]}
    names = list(dict.fromkeys(name for each in stages.values() for name in each))
    others = iter(OTHERS * len(names))
    colours = {name: COLOURS.get(name) or next(others) for name in names}
    rows = [
        row
        for row in ROWS
        if row != "states" or any(e["states"] for s in stages.values() for e in s.values())
    ]
    figure = Figure(figsize=(1.5 + 6.6 * len(stages), 0.9 + 3.7 * len(rows)), layout="constrained", dpi=100)
    figure.suptitle(title.replace("$", r"\$"), fontsize=13, weight="bold", x=0.01, ha="left")
    grid = figure.subplots(len(rows), len(stages), squeeze=False, sharey="row")
    for line, row in zip(grid, rows, strict=True):
        for axes, (stage, each) in zip(line, stages.items(), strict=True):
            _panel(axes, row, each, colours, told["common"])
            axes.set_title(ROWS[row], fontsize=9.5, loc="left")
            if row == "inputs":
                axes.annotate(
                    _headline(stage, told["verdict"].get(stage)), (0, 1), (0, 24), xycoords="axes fraction",
                    textcoords="offset points", fontsize=11.5, weight="bold",
                )  # fmt: skip
        line[0].set_ylabel("gradient norm, 1 at distance 1" if row != "last_word" else "gradient norm")
    for axes in grid[0]:
        axes.legend(fontsize=9.5, frameon=False, loc="lower left")
    with atomic_write(path) as part:
        figure.savefig(part, format="png")


def _headline(stage: str, verdict: Mapping[str, str] | None) -> str:
    when = "At initialisation" if stage == "initialisation" else "After training"
    if verdict is None:
        return when
    return f"{when}: vanishing in the RNN and not in the LSTM? {verdict['answer'].upper()}"


def _panel(axes: Axes, row: str, stage: Mapping[str, Any], colours: Mapping[str, str], common: int) -> None:
    lowest = 1.0
    for name, each in stage.items():
        curves = (
            {state: each["states"][state] for state in each["states"]}
            if row == "states"
            else {row: each[row]}
        )
        for state, curve in curves.items():
            style = "--" if state.endswith("cell") else "-"
            seeds = f"{name} ({each['seeds']} seed{'s' * (each['seeds'] > 1)})"
            low = _curve(axes, row, curve, colours[name], style, seeds if row != "states" else "", common)
            lowest = min(lowest, low)
    axes.set_yscale("log")
    axes.grid(color="0.93")
    axes.spines[["top", "right"]].set_visible(False)
    if row == "last_word":
        axes.set_xlabel("position of the word in the caption (0: <start>)")
        return
    axes.set_ylim(max(FLOOR, lowest / 3), None)
    axes.set_xlabel(
        "distance k, words back" + ("; dotted: fewer losses reach so far" if row == "inputs" else "")
    )
    axes.axhline(VANISHED, color="0.5", linewidth=0.8, linestyle=":")
    axes.annotate(
        "1/1000: vanished", (0, VANISHED), (4, -3), xycoords=("axes fraction", "data"),
        textcoords="offset points", va="top", fontsize=8, color="0.4",
    )  # fmt: skip


def _curve(
    axes: Axes, row: str, curve: Mapping[str, Any], colour: str, style: str, seeds: str, common: int
) -> float:
    """Draw a mean and its band; the lowest value drawn."""
    mean, low, high = (np.array(curve[part]) for part in ("mean", "low", "high"))
    if row != "last_word":
        low, high, mean = low / mean[1], high / mean[1], mean / mean[1]
    mean, low, high = (np.where(part > 0, part, np.nan) for part in (mean, low, high))
    x = np.arange(len(mean))
    near = x <= common if row != "last_word" else x >= 0
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x[near], mean[near], style, color=colour, linewidth=2, label=seeds or None)
    if not near.all():
        axes.plot(x[common:], mean[common:], ":", color=colour, linewidth=1.3)
    return float(np.nanmin(mean))
