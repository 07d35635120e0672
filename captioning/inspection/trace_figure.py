"""A figure of a trace: attention on the photo, gates and states, with the words along the x axis."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from captioning.images.preprocessing import Preprocessing
from captioning.inspection.attention_maps import project_map
from captioning.inspection.axes import escape, highlight, style
from captioning.inspection.trace import GATES, NO_GATES, RETENTION_GATES, Trace, summary
from captioning.utils.fonts import save_png

LEFT, RIGHT, TOP = 3.1, 0.45, 0.85
"""Inches left of the panels for the legends, right of them, and above the first panel."""

NOTE = (
    "photos: in colour where the decoder looked; ×: strongest region relative to uniform attention.   "
    "gates: mean over the units, with the middle half and the middle 80 % of them"
)

MIN_WIDTH, MAX_WIDTH = 11.0, 34.0
"""Limits of the total width of the words, in inches."""

WIDE, NARROW = 0.9, 0.45
"""Inches per word in captions of at most `SHORT` words, and in longer ones."""

SHORT = 24

MAP_WIDTH = 0.85
"""Minimum inches of an attention map: in long captions only every second, third ... word has one."""

GAP = 0.16
"""Inches between panels."""

COLOURS = {
    "input": "#2a9d3a",
    "forget": "#c8553d",
    "output": "#3d6fc8",
    "reset": "#8f5fc0",
    "update": "#c8553d",
    "sentinel": "#b8860b",
    "cell": "#444444",
    "hidden": "#3d6fc8",
    "probability": "#777777",
}

MEANING = {
    "input": ("input gate", "1: the word is written into the memory\n0: nothing is written"),
    "forget": ("forget gate", "1: the memory is kept\n0: it is erased"),
    "output": ("output gate", "1: the memory is output\n0: it is hidden"),
    "reset": ("reset gate", "1: the candidate uses the old state\n0: it ignores it"),
    "update": ("update gate", "1: the old state is kept\n0: it is replaced"),
    "sentinel": ("sentinel", "1: the word comes from language\n0: it comes from the photo"),
}


def draw_trace(
    trace: Trace,
    image: Image.Image,
    path: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing,
    title: str,
) -> None:
    """Write a PNG of the trace.

    Args:
        image: the photo, RGB, upright.
        preprocessing: determines which part of the photo the regions cover. Maps are drawn only if the regions
            are a square grid.
        title: above the figure, for example the model's name.
    """
    count = len(trace.words)
    width = min(MAX_WIDTH, max(MIN_WIDTH, count * (WIDE if count <= SHORT else NARROW)))
    stride = math.ceil(MAP_WIDTH * count / width)
    shape = min(1.6, max(0.6, image.height / image.width))
    has_maps = (
        trace.attention is not None and math.isqrt(trace.attention.shape[1]) ** 2 == trace.attention.shape[1]
    )
    map_height = min(width * stride / count, 1.5) * shape if has_maps else 0.0
    photo_height = max(map_height + 0.5, min(1.65, 1.65 * shape) + 0.15)  # the photo is left of the maps
    panels = _panels(trace)
    rotate = count > SHORT
    bottom = 0.15 + (0.09 * max(map(len, trace.words)) if rotate else 0.25) + 0.3 * (not trace.layers)
    height = TOP + photo_height + sum(inches + GAP for _, _, inches in panels) + bottom
    sheet = _Sheet(width, height)
    sheet.header(title)
    sheet.down(TOP)
    _draw_photo(sheet, image, photo_height - 0.15)
    if has_maps:
        _draw_maps(sheet, trace, image, preprocessing, stride, map_height)
    sheet.down(photo_height)
    numbers = summary(trace)
    for name, layer, inches in panels:
        axes = sheet.strip(inches, count)
        _draw_panel(sheet, axes, trace, numbers, name, layer, inches)
        sheet.down(inches + GAP)
    words = [_label(word) for word in trace.words]
    axes.set_xticks(range(count), words, fontsize=9 if count > 14 else 11)
    axes.tick_params(axis="x", rotation=90 if rotate else 0, length=0)
    if not trace.layers:
        sheet.figure.text(0.15 / sheet.width, 0.2 / height, NO_GATES, fontsize=10, style="italic")
    save_png(sheet.figure, path)


class _Sheet:
    """A figure in which axes are placed from the top down, in inches."""

    def __init__(self, words: float, height: float):
        self.words, self.height = words, height
        self.width = LEFT + words + RIGHT
        self.top = 0.0  # inches from the upper edge
        self.figure = Figure(figsize=(self.width, height), dpi=min(110, 6000 / self.width))

    def header(self, title: str) -> None:
        title = textwrap.shorten(title, int(self.width * 7), placeholder=" ...")
        x = 0.15 / self.width
        self.figure.text(x, 1 - 0.28 / self.height, _label(title), fontsize=13, weight="bold", va="center")
        self.figure.text(x, 1 - 0.55 / self.height, NOTE, fontsize=8.5, color="0.3", va="center")

    def down(self, inches: float) -> None:
        self.top += inches

    def axes(self, left: float, width: float, height: float, *, below: float = 0.0) -> Axes:
        bottom = self.height - self.top - below - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def picture(self, pixels: Any, left: float, width: float, height: float, *, below: float = 0.0) -> Axes:
        axes = self.axes(left, width, height, below=below)
        axes.imshow(pixels)
        axes.set_axis_off()
        return axes

    def strip(self, height: float, count: int) -> Axes:
        """Axes as wide as the words, word t at x = t."""
        axes = self.axes(LEFT, self.words, height)
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_xticks([])
        style(axes, grid="y")
        axes.tick_params(axis="y", labelsize=8, length=2)
        return axes

    def legend(self, name: str, text: str, colour: str, height: float) -> None:
        """The name of a strip in its colour and its meaning, left of the strip."""
        y = 1 - (self.top + height / 2) / self.height
        offset = 0.085 * (text.count("\n") + 1) / self.height
        x = 0.15 / self.width
        self.figure.text(x, y + offset, name, fontsize=11, weight="bold", color=colour, va="center")
        self.figure.text(
            x, y - 0.09 / self.height, text, fontsize=8, color="0.25", linespacing=1.3, va="center"
        )


def _panels(trace: Trace) -> list[tuple[str, int, float]]:
    """Name, layer and height in inches of each strip."""
    panels = [("probability", 0, 0.7)]
    for number, layer in enumerate(trace.layers):
        panels += [(name, number, 0.8) for name in (*GATES, "sentinel") if name in layer]
        panels.append(("state", number, 0.9))
    return panels


def _draw_photo(sheet: _Sheet, image: Image.Image, height: float) -> None:
    axes = sheet.picture(image, 0.15, min(LEFT - 0.6, height * image.width / image.height), height)
    axes.set_anchor("NW")


def _draw_maps(
    sheet: _Sheet,
    trace: Trace,
    image: Image.Image,
    preprocessing: Preprocessing,
    stride: int,
    height: float,
) -> None:
    """The photo above every `stride`-th word, highlighted by the word's attention."""
    assert trace.attention is not None
    count, grid = len(trace.words), math.isqrt(trace.attention.shape[1])
    small = image.copy()
    small.thumbnail((224, 224))
    photo = np.asarray(small, np.float32) / 255
    word_width = sheet.words / count
    room = word_width * stride
    width = min(room * 0.95, height * image.width / image.height)
    for word in range(0, count - stride + 1, stride):
        weights = trace.attention[word].astype(np.float32)
        lit = highlight(photo, project_map(weights.reshape(grid, grid), small.size, preprocessing))
        left = LEFT + word_width * word + (0 if stride > 1 else (room - width) / 2)
        axes = sheet.picture(lit, left, width, height, below=0.38)
        axes.set_anchor("N")
        strongest = weights.max() * len(weights) / max(float(weights.sum()), 1e-9)
        axes.set_title(f"{_label(trace.words[word])}\n×{strongest:.1f}", fontsize=9, pad=3)


def _draw_panel(
    sheet: _Sheet, axes: Axes, trace: Trace, numbers: Mapping[str, Any], name: str, layer: int, height: float
) -> None:
    x = np.arange(len(trace.words))
    prefix = f"layer {layer + 1}: " if len(trace.layers) > 1 else ""
    if name == "state":
        title, text = _draw_state(axes, x, numbers["layers"][layer])
        sheet.legend(prefix + title, text, COLOURS["cell"], height)
        return
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
    if name == "probability":
        axes.bar(x, np.exp(trace.word_logprobs), width=0.6, color=COLOURS[name])
        title, prefix = "probability", ""
        text = f"of each word, given those before it\nthe caption: e^{numbers['logprob']:.1f}"
    elif name == "sentinel":
        axes.bar(x, trace.layers[layer][name], width=0.6, color=COLOURS[name])
        title, text = MEANING[name]
    else:
        title, text = _draw_gate(axes, x, name, trace.layers[layer][name], numbers["layers"][layer])
    sheet.legend(prefix + title, text, COLOURS[name], height)


def _draw_gate(
    axes: Axes, x: np.ndarray, name: str, values: np.ndarray, numbers: Mapping[str, Any]
) -> tuple[str, str]:
    """Draw a gate's values (T, H); the title and text of its legend."""
    colour = COLOURS[name]
    for low, high, alpha in ((0.1, 0.9, 0.16), (0.25, 0.75, 0.28)):
        band = np.quantile(values, (low, high), axis=1)
        axes.fill_between(x, *band, color=colour, alpha=alpha, linewidth=0)
    axes.plot(x, values.mean(1), color=colour, marker="o", markersize=3.5)
    title, text = MEANING[name]
    gate = numbers["gates"][name]
    text += f"\n{100 * gate['above_0.9']:.0f} % above .9, {100 * gate['below_0.1']:.0f} % below .1"
    if name in RETENTION_GATES:
        median = numbers["half_life"]["words"]["median"]
        text += (
            "\nthe median unit keeps its memory"
            if median is None
            else f"\nmemory half-life {median:.1f} words (median)"
        )
    return title, text


def _draw_state(axes: Axes, x: np.ndarray, numbers: Mapping[str, Any]) -> tuple[str, str]:
    """Draw the norms of the states; the title and text of their legend."""
    for name in ("cell", "hidden"):
        if f"{name}_norm" in numbers:
            norms = numbers[f"{name}_norm"]
            axes.plot(x, norms, color=COLOURS[name], marker="o", markersize=3.5)
            axes.annotate(
                name, (x[-1], norms[-1]), (4, 0), textcoords="offset points", va="center", fontsize=8,
                color=COLOURS[name], annotation_clip=False,
            )  # fmt: skip
    axes.set_ylim(0, None)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    text = f"of the hidden state ({numbers['units']} units)"
    if "cell_norm" in numbers:
        text += "\nand of the memory cell"
    return "norm of the state", text


def _label(text: str) -> str:
    return escape(text).replace("<end>", "(end)")
