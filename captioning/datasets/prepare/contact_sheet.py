"""A contact sheet: images of every split with their captions, as one PNG. Knows how to draw, no data set."""

from __future__ import annotations

import os
import random
import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from captioning.errors import UserError
from captioning.records import ImageRecord
from captioning.utils.files import replacing

CELL = 3.2  # inches of a cell's width
LINE = 0.155  # inches of a line of text
LETTERS = 50  # letters of a line
LONGEST = 150  # letters of a caption that are shown
MOST_CAPTIONS = 5


def draw_sheet(
    records: Sequence[ImageRecord],
    path: str | os.PathLike[str],
    *,
    open_image: Callable[[str], object],
    splits: Sequence[str],
    columns: int = 5,
    seed: int = 0,
) -> None:
    """Write a PNG: for each split a row of `columns` images drawn by `seed`, captions below."""
    dice = random.Random(seed)
    rows = [
        dice.sample(chosen, min(columns, len(chosen)))
        for split in splits
        if (chosen := [record for record in records if record.split == split])
    ]
    texts = [[_text(record) for record in row] for row in rows]
    lines = [max(text.count("\n") + 1 for text in row) for row in texts]
    heights = [CELL * 0.8 + LINE * (count + 1.5) for count in lines]
    figure = Figure(figsize=(CELL * columns, sum(heights)), dpi=100)
    FigureCanvasAgg(figure)
    top = sum(heights)
    for row, row_texts, height in zip(rows, texts, heights, strict=True):
        for column, (record, text) in enumerate(zip(row, row_texts, strict=True)):
            left = (column + 0.03) / columns
            picture_height = CELL * 0.8 - LINE * 1.5
            bottom = (top - LINE * 1.5 - picture_height) / sum(heights)
            axes = figure.add_axes((left, bottom, 0.94 / columns, picture_height / sum(heights)))
            axes.axis("off")
            axes.set_title(_plain(f"{record.split}: {record.image_id}"), fontsize=8, loc="left", pad=3)
            axes.set_anchor("NW")
            try:
                axes.imshow(np.asarray(open_image(record.path)))
            except UserError as error:
                axes.text(0, 0.5, textwrap.fill(_plain(str(error)), LETTERS), fontsize=8, color="red")
            figure.text(left, bottom - LINE * 0.5 / sum(heights), text, fontsize=7.5, va="top")
        top -= height
    with replacing(path) as part:
        figure.savefig(part, format="png", facecolor="white")


def _text(record: ImageRecord) -> str:
    """Captions as a list, each wrapped; how many there are beyond those shown."""
    shown = [textwrap.shorten(caption, LONGEST, placeholder=" ...") for caption in record.captions]
    lines = [
        textwrap.fill(_plain(caption), LETTERS, initial_indent="- ", subsequent_indent="  ")
        for caption in shown[:MOST_CAPTIONS]
    ]
    further = len(shown) - MOST_CAPTIONS
    return "\n".join([*lines, *([f"and {further} more"] if further > 0 else [])])


def _plain(text: str) -> str:
    """Text that matplotlib draws as it stands: `$` would begin mathematics, control codes have no form."""
    return "".join(letter if letter.isprintable() else " " for letter in text).replace("$", r"\$")
