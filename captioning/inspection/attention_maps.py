"""Where a captioner looks for each word, as numbers and as a picture. Knows no search."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from captioning.captioner.captioner import Captioner
from captioning.errors import UserError
from captioning.images.preprocessing import Preprocessing
from captioning.utils.files import atomic_write

COLUMNS = 5
INCHES = 2.2
"""Pictures in a row of the drawing, and the side of one."""

Box = tuple[float, float, float, float]


@torch.inference_mode()
def attention_of(captioner: Captioner, pixels: Tensor, words: Sequence[str]) -> np.ndarray:
    """The attention with which the captioner chooses each of `words`, which it reads back (teacher forced).

    Args:
        captioner: in eval mode, on the device of `pixels`.
        pixels: one prepared image, (3, height, width).
        words: a caption's T words, all of the vocabulary.

    Returns:
        (T, grid, grid) float32: rows from the top, columns from the left; each word's map sums to 1.

    Raises:
        UserError: a word is not in the vocabulary, the decoder shows no attention, or the regions are not a
            square grid.
    """
    vocabulary = captioner.vocabulary
    if unknown := [word for word in words if word not in vocabulary.ids]:
        raise UserError(f"{unknown[0]!r} is not a word of the model's vocabulary; draw a caption of its own")
    if not words:
        return np.zeros((0, 1, 1), np.float32)
    read = [vocabulary.start, *(vocabulary.ids[word] for word in words[:-1])]
    memory = captioner.decoder.encode_memory(captioner.features(pixels[None]))
    steps = captioner.decoder(torch.tensor([[read]], device=pixels.device), memory)
    if steps.attention is None:
        raise UserError(f"the decoder {captioner.config.decoder.kind} shows no attention")
    maps = steps.attention[0, 0].float().cpu().numpy()  # (T, N)
    grid = math.isqrt(maps.shape[1])
    if grid * grid != maps.shape[1]:
        raise UserError(f"{maps.shape[1]} regions are not a square grid; their attention cannot be drawn")
    return maps.reshape(len(words), grid, grid)


def seen_box(width: int, height: int, preprocessing: Preprocessing) -> Box:
    """The part of a photo of that size that the encoder sees: left, top, right, bottom in the photo's pixels.

    `preprocess` scales about the middle and keeps the middle. With "long_side" the box reaches beyond the photo.
    """
    size = preprocessing.size
    side = max(size, round(size / preprocessing.crop))
    if preprocessing.resize == "stretch":
        across, down = width / side, height / side  # photo pixels a prepared pixel
    elif preprocessing.resize == "short_side":
        across = down = min(width, height) / side
    else:
        across = down = max(width, height) / side
    half = size / 2
    return (
        width / 2 - half * across,
        height / 2 - half * down,
        width / 2 + half * across,
        height / 2 + half * down,
    )


def draw(
    image: Image.Image,
    words: Sequence[str],
    maps: np.ndarray,
    path: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing,
) -> None:
    """Write a PNG: the photo, then for each word the photo lit where the captioner looked.

    Each map is drawn from black (no attention) to full light (the word's strongest region), so that an even
    one shows an even photo. Beside the word stands how many times the even share its strongest region has.

    Args:
        image: RGB.
        words: T words.
        maps: (T, grid, grid), from `attention_of`.
        preprocessing: says which part of the photo the grid covers.
    """
    pictures = len(words) + 1
    columns = min(COLUMNS, pictures)
    rows = math.ceil(pictures / columns)
    shape = min(2.0, max(0.5, image.height / image.width))
    figure = Figure(figsize=(INCHES * columns, (INCHES * shape + 0.3) * rows), layout="constrained", dpi=110)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell in cells:
        cell.set_axis_off()
    cells[0].imshow(image)
    cells[0].set_title("photo", fontsize=9)
    photo = np.asarray(image, np.float32) / 255
    light = [spread(each, image.size, preprocessing) for each in maps]
    for cell, word, each, lit in zip(cells[1:], words, maps, light, strict=False):
        # the photo in its own colours where the model looks, dark grey where it does not
        grey = photo.mean(-1, keepdims=True) * 0.35
        cell.imshow(np.clip(grey + (photo - grey) * lit[..., None], 0, 1))
        # "$" would begin a formula
        cell.set_title(f"{word}  ×{each.max() * each.size:.1f}".replace("$", r"\$"), fontsize=9)
    figure.supxlabel("light: where the model looked; ×: its strongest region over an even share", fontsize=7)
    with atomic_write(path) as part:
        figure.savefig(part, format="png")


def spread(weights: np.ndarray, size: tuple[int, int], preprocessing: Preprocessing) -> np.ndarray:
    """A map (grid, grid) laid over a photo of `size` (width, height): (height, width) in 0 .. 1."""
    width, height = size
    left, top, right, bottom = seen_box(width, height, preprocessing)
    scaled = Image.fromarray((weights / weights.max()).astype(np.float32))
    over = scaled.resize((max(1, round(right - left)), max(1, round(bottom - top))), Image.Resampling.BICUBIC)
    canvas = Image.new("F", size, 0.0)
    canvas.paste(over, (round(left), round(top)))
    return np.clip(np.asarray(canvas), 0, 1)
