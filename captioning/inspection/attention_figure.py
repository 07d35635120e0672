"""A figure of attention maps: the photo, highlighted for each word where the model looked."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from captioning.images.preprocessing import Preprocessing
from captioning.inspection.attention_maps import Attention, project_box, project_map
from captioning.inspection.axes import escape, highlight
from captioning.utils.fonts import save_png

COLUMNS = 5
INCHES = 2.2
"""Width of one picture."""


def draw_attention(
    image: Image.Image,
    words: Sequence[str],
    attention: Attention,
    path: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing,
) -> None:
    """Write a PNG: the photo, then for each word the photo highlighted by its attention map.

    Each map is drawn from dark grey (no attention) to full colour (the word's strongest region), so uniform
    attention shows the unchanged photo. Of boxes the strongest one is framed. The number after the word is the
    weight of its strongest region relative to uniform attention.

    Args:
        image: RGB.
        words: T words.
        attention: of the T words, from `attention_maps`.
        preprocessing: determines which part of the photo the regions cover.
    """
    pictures = len(words) + 1
    columns = min(COLUMNS, pictures)
    rows = math.ceil(pictures / columns)
    shape = min(2.0, max(0.5, image.height / image.width))
    figure = Figure(figsize=(INCHES * columns, (INCHES * shape + 0.3) * rows), layout="constrained", dpi=110)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    grid[0].imshow(image)
    grid[0].set_title("photo", fontsize=9)
    photo = np.asarray(image, np.float32) / 255
    for number, (axes, word, weights) in enumerate(zip(grid[1:], words, attention.weights, strict=False)):
        axes.imshow(highlight(photo, project_map(attention.map(number), image.size, preprocessing)))
        if attention.boxes is not None:
            box = project_box(attention.boxes[weights.argmax()], image.size, preprocessing)
            axes.add_patch(
                Rectangle(
                    box[:2], box[2] - box[0], box[3] - box[1], fill=False, color="tab:orange", linewidth=1.5
                )
            )
        axes.set_title(escape(f"{word}  ×{weights.max() * weights.size:.1f}"), fontsize=9)
    figure.supxlabel(
        "in colour: where the model looked; ×: strongest region relative to uniform attention", fontsize=7
    )
    save_png(figure, path)
