"""One figure of a trace: words across; attention over the photo, gates, states. Computes nothing of a model."""

from __future__ import annotations

import math
import os
import textwrap
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from captioning.images.preprocessing import Preprocessing
from captioning.inspection.attention_maps import spread
from captioning.inspection.trace import GATES, KEEPS, NO_GATES, Trace, summary
from captioning.utils.files import atomic_write

LEFT, RIGHT, TOP = 3.1, 0.45, 0.85
"""Inches for the legends beside the panels, behind the last word, and above the first panel."""

EXPLAINED = (
    "photos: lit where the decoder looked for the word; ×: its strongest region over an even share.   "
    "gates: mean over the units, with the middle half and the middle 80 % of them"
)

WIDTH = (11.0, 34.0)
"""Least and most inches that the words take."""

WIDE, NARROW = 0.9, 0.45
"""Inches of a word in captions of at most `SHORT` words, and of longer ones."""

SHORT = 24

MAP = 0.85
"""Least inches of an attention map: of long captions every second, third ... word has one."""

COLOURS = {
    "input": "#2a9d3a",
    "forget": "#c8553d",
    "output": "#3d6fc8",
    "reset": "#8f5fc0",
    "update": "#c8553d",
    "sentinel": "#b8860b",
    "cell": "#444444",
    "hidden": "#3d6fc8",
    "chance": "#777777",
}

MEANING = {
    "input": ("input gate", "1: the word is written into the memory\n0: it leaves no mark"),
    "forget": ("forget gate", "1: the memory is kept\n0: it is wiped"),
    "output": ("output gate", "1: the memory is shown\n0: it stays hidden"),
    "reset": ("reset gate", "1: the candidate sees the old state\n0: it starts afresh"),
    "update": ("update gate", "1: the old state is kept\n0: it is replaced"),
    "sentinel": ("sentinel", "1: the word comes from language\n0: it comes from the photo"),
}


class Panel(NamedTuple):
    """A strip of the figure: how high, in inches, and what draws it."""

    height: float
    kind: str  # "chance", "gate", "state", "sentinel"
    layer: int
    name: str


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
        preprocessing: says which part of it the regions cover; regions that are no square grid are not drawn.
        title: what is said above, the model's name for example.
    """
    count = len(trace.words)
    grid = 0 if trace.attention is None else math.isqrt(trace.attention.shape[1])
    width = min(WIDTH[1], max(WIDTH[0], count * (WIDE if count <= SHORT else NARROW)))
    stride = math.ceil(MAP * count / width)
    shape = min(1.6, max(0.6, image.height / image.width))
    seen = trace.attention is not None and grid * grid == trace.attention.shape[1]
    map_height = min(width * stride / count, 1.5) * shape if seen else 0.0
    row = max(map_height + 0.5, min(1.65, 1.65 * shape) + 0.15)  # the photo itself stands left of the maps
    panels = _panels(trace)
    rotate = count > SHORT
    bottom = 0.15 + (0.09 * max(map(len, trace.words)) if rotate else 0.25) + 0.3 * (not trace.layers)
    height = TOP + row + sum(panel.height + 0.16 for panel in panels) + bottom
    figure = Figure(figsize=(LEFT + width + RIGHT, height), dpi=min(110, 6000 / (LEFT + width + RIGHT)))
    sheet = _Sheet(figure, width, height)
    title = textwrap.shorten(title, int(sheet.width * 7), placeholder=" ...")
    figure.text(0.15 / sheet.width, 1 - 0.28 / height, _plain(title), fontsize=13, weight="bold", va="center")
    figure.text(0.15 / sheet.width, 1 - 0.55 / height, EXPLAINED, fontsize=8.5, color="0.3", va="center")
    sheet.down(TOP)
    _photo(sheet, image, row - 0.15)
    if seen and trace.attention is not None:
        _maps(sheet, trace, image, preprocessing, grid, stride, map_height)
    sheet.down(row)
    told = summary(trace)
    axes: Axes | None = None
    for panel in panels:
        axes = sheet.strip(panel.height, count)
        _fill(sheet, axes, trace, told, panel)
        sheet.down(panel.height + 0.16)
    if axes is not None:
        axes.set_xticks(
            range(count), [_plain(word) for word in trace.words], fontsize=9 if count > 14 else 11
        )
        axes.tick_params(axis="x", rotation=90 if rotate else 0, length=0)
    if not trace.layers:
        figure.text(0.15 / sheet.width, 0.2 / height, NO_GATES, fontsize=10, style="italic")
    with atomic_write(path) as part:
        figure.savefig(part, format="png")


class _Sheet:
    """Places axes by inches, from the top down."""

    def __init__(self, figure: Figure, words: float, height: float):
        self.figure, self.words, self.height = figure, words, height
        self.width = LEFT + words + RIGHT
        self.top = 0.0  # inches from the upper edge

    def down(self, inches: float) -> None:
        self.top += inches

    def axes(self, left: float, width: float, height: float, *, below: float = 0.0) -> Axes:
        bottom = self.height - self.top - below - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def strip(self, height: float, count: int) -> Axes:
        """Axes as wide as the words, word t at x = t."""
        axes = self.axes(LEFT, self.words, height)
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_xticks([])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", labelsize=8, length=2)
        return axes

    def legend(self, name: str, text: str, colour: str, height: float) -> None:
        """A name in its colour and what it means, left of a strip."""
        y = 1 - (self.top + height / 2) / self.height
        lines = text.count("\n") + 1
        step = 0.085 * lines / self.height
        x = 0.15 / self.width
        self.figure.text(x, y + step, name, fontsize=11, weight="bold", color=colour, va="center")
        self.figure.text(
            x, y - 0.09 / self.height, text, fontsize=8, color="0.25", linespacing=1.3, va="center"
        )


def _panels(trace: Trace) -> list[Panel]:
    panels = [Panel(0.7, "chance", 0, "chance")]
    for number, layer in enumerate(trace.layers):
        panels += [Panel(0.8, "gate", number, name) for name in GATES if name in layer]
        if "sentinel" in layer:
            panels.append(Panel(0.8, "sentinel", number, "sentinel"))
        panels.append(Panel(0.9, "state", number, "state"))
    return panels


def _photo(sheet: _Sheet, image: Image.Image, height: float) -> None:
    width = min(LEFT - 0.6, height * image.width / image.height)
    axes = sheet.axes(0.15, width, height)
    axes.imshow(image)
    axes.set_axis_off()
    axes.set_anchor("NW")


def _maps(
    sheet: _Sheet,
    trace: Trace,
    image: Image.Image,
    preprocessing: Preprocessing,
    grid: int,
    stride: int,
    height: float,
) -> None:
    """The photo above each word, lit where the decoder looked: black to full light at its strongest region."""
    assert trace.attention is not None
    small = image.copy()
    small.thumbnail((224, 224))
    photo = np.asarray(small, np.float32) / 255
    grey = photo.mean(-1, keepdims=True) * 0.35
    each = sheet.words / len(trace.words)
    room = each * stride
    for word in range(0, len(trace.words), stride):
        weights = trace.attention[word].astype(np.float32)
        lit = spread(weights.reshape(grid, grid), small.size, preprocessing)[..., None]
        if word + stride > len(trace.words):
            break  # no room left of the edge
        width = min(room * 0.95, height * image.width / image.height)
        left = LEFT + each * word + (0 if stride > 1 else (room - width) / 2)
        axes = sheet.axes(left, width, height, below=0.38)
        axes.imshow(np.clip(grey + (photo - grey) * lit, 0, 1))
        axes.set_axis_off()
        axes.set_anchor("N")
        strongest = weights.max() * len(weights) / max(float(weights.sum()), 1e-9)
        axes.set_title(f"{_plain(trace.words[word])}\n×{strongest:.1f}", fontsize=9, pad=3)


def _fill(sheet: _Sheet, axes: Axes, trace: Trace, told: dict[str, Any], panel: Panel) -> None:
    x = np.arange(len(trace.words))
    if panel.kind == "chance":
        chance = np.exp(trace.word_logprobs)
        axes.bar(x, chance, width=0.6, color=COLOURS["chance"])
        _share_axis(axes)
        text = f"of each word, given those before it\nthe caption: e^{told['logprob']:.1f}"
        sheet.legend("probability", text, COLOURS["chance"], panel.height)
        return
    layer, numbers = trace.layers[panel.layer], told["layers"][panel.layer]
    prefix = f"layer {panel.layer + 1}: " if len(trace.layers) > 1 else ""
    if panel.kind == "gate":
        colour, values = COLOURS[panel.name], layer[panel.name]
        for low, high, alpha in ((0.1, 0.9, 0.16), (0.25, 0.75, 0.28)):
            axes.fill_between(
                x, *np.quantile(values, (low, high), axis=1), color=colour, alpha=alpha, linewidth=0
            )
        axes.plot(x, values.mean(1), color=colour, marker="o", markersize=3.5)
        _share_axis(axes)
        name, text = MEANING[panel.name]
        gate = numbers["gates"][panel.name]
        text += f"\n{100 * gate['above_0.9']:.0f} % above .9, {100 * gate['below_0.1']:.0f} % below .1"
        if panel.name in KEEPS:
            text += f"\n{_half_life(numbers['half_life'])}"
        sheet.legend(prefix + name, text, colour, panel.height)
    elif panel.kind == "sentinel":
        name, text = MEANING["sentinel"]
        axes.bar(x, layer["sentinel"], width=0.6, color=COLOURS["sentinel"])
        _share_axis(axes)
        sheet.legend(prefix + name, text, COLOURS["sentinel"], panel.height)
    else:
        for name in ("cell", "hidden"):
            if name in layer:
                axes.plot(x, numbers[f"{name}_norm"], color=COLOURS[name], marker="o", markersize=3.5)
                end = numbers[f"{name}_norm"][-1]
                axes.annotate(name, (x[-1], end), (4, 0), textcoords="offset points", va="center", fontsize=8,
                              color=COLOURS[name], annotation_clip=False)  # fmt: skip
        axes.set_ylim(0, None)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        text = f"norm over {numbers['units']} units of the hidden state"
        if "cell" in layer:
            text += "\nand of the memory cell behind it"
        sheet.legend(prefix + "size of the state", text, COLOURS["cell"], panel.height)


def _half_life(told: dict[str, Any]) -> str:
    median = told["words"]["median"]
    return (
        "half of a unit never fades" if median is None else f"a memory halves in {median:.1f} words (median)"
    )


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])


def _plain(text: str) -> str:
    return text.replace("$", r"\$").replace("<end>", "(end)")
