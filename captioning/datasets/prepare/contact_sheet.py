"""Draw a contact sheet: images of every split with their captions, as one PNG."""

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
from captioning.utils.fonts import save_png

CELL_WIDTH = 3.2  # inches
LINE_HEIGHT = 0.155  # inches
LINE_CHARACTERS = 50
CAPTION_CHARACTERS = 150  # longer captions are shortened
MAX_CAPTIONS = 5


def draw_sheet(
    records: Sequence[ImageRecord],
    path: str | os.PathLike[str],
    *,
    open_image: Callable[[str], object],
    splits: Sequence[str],
    columns: int = 5,
    seed: int = 0,
) -> None:
    """Write a PNG with a row of `columns` random images for each split, captions below them."""
    generator = random.Random(seed)
    rows = [
        generator.sample(of_split, min(columns, len(of_split)))
        for split in splits
        if (of_split := [record for record in records if record.split == split])
    ]
    texts = [[_caption_text(record) for record in row] for row in rows]
    line_counts = [max(text.count("\n") + 1 for text in row) for row in texts]
    heights = [CELL_WIDTH * 0.8 + LINE_HEIGHT * (count + 1.5) for count in line_counts]
    total_height = sum(heights)
    figure = Figure(figsize=(CELL_WIDTH * columns, total_height), dpi=100)
    FigureCanvasAgg(figure)
    top = total_height
    for row, row_texts, height in zip(rows, texts, heights, strict=True):
        for column, (record, text) in enumerate(zip(row, row_texts, strict=True)):
            left = (column + 0.03) / columns
            image_height = CELL_WIDTH * 0.8 - LINE_HEIGHT * 1.5
            bottom = (top - LINE_HEIGHT * 1.5 - image_height) / total_height
            axes = figure.add_axes((left, bottom, 0.94 / columns, image_height / total_height))
            axes.axis("off")
            axes.set_title(_escape(f"{record.split}: {record.image_id}"), fontsize=8, loc="left", pad=3)
            axes.set_anchor("NW")
            try:
                axes.imshow(np.asarray(open_image(record.path)))
            except UserError as error:
                message = textwrap.fill(_escape(str(error)), LINE_CHARACTERS)
                axes.text(0, 0.5, message, fontsize=8, color="red")
            figure.text(left, bottom - LINE_HEIGHT * 0.5 / total_height, text, fontsize=7.5, va="top")
        top -= height
    save_png(figure, path, facecolor="white")


def _caption_text(record: ImageRecord) -> str:
    """The first captions as a wrapped list, and the number of further ones."""
    lines = [
        textwrap.fill(
            _escape(textwrap.shorten(caption, CAPTION_CHARACTERS, placeholder=" ...")),
            LINE_CHARACTERS,
            initial_indent="- ",
            subsequent_indent="  ",
        )
        for caption in record.captions[:MAX_CAPTIONS]
    ]
    further = len(record.captions) - MAX_CAPTIONS
    return "\n".join([*lines, *([f"and {further} more"] if further > 0 else [])])


def _escape(text: str) -> str:
    """Text that matplotlib draws unchanged: `$` would start a formula, control characters have no glyph."""
    return "".join(character if character.isprintable() else " " for character in text).replace("$", r"\$")
