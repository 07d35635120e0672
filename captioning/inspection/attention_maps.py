"""Attention maps of a caption's words, and their position on the photo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captioning.captioner.captioner import Captioner
from captioning.errors import UserError
from captioning.images.preprocessing import Preprocessing

Box = tuple[float, float, float, float]


RASTER = 96
"""Side of the map of attention on boxes."""


class Attention(NamedTuple):
    """The attention of a caption's T words on N regions."""

    weights: np.ndarray  # (T, N) float32; the weights of a word sum to 1
    boxes: (
        np.ndarray | None
    )  # (N, 4) left, top, right, bottom, as shares of the encoder's input; None: a grid

    def map(self, word: int) -> np.ndarray:
        """The map of a word, (rows, columns): of a grid its weights; of boxes the largest weight at each place."""
        weights = self.weights[word]
        if self.boxes is None:
            grid = math.isqrt(len(weights))
            return weights.reshape(grid, grid)
        place = (np.arange(RASTER) + 0.5) / RASTER
        left, top, right, bottom = self.boxes.T[:, :, None]
        columns, rows = (left <= place) & (place <= right), (top <= place) & (place <= bottom)  # (N, RASTER)
        inside = rows[:, :, None] & columns[:, None, :]
        return np.where(inside, weights[:, None, None], 0).max(0).astype(np.float32)


@torch.inference_mode()
def attention_maps(captioner: Captioner, pixels: Tensor, words: Sequence[str]) -> Attention:
    """The attention of each word of a caption, by teacher forcing.

    Args:
        captioner: in eval mode, on the device of `pixels`.
        pixels: one preprocessed image, (3, height, width).
        words: the caption's T words, all in the vocabulary.

    Raises:
        UserError: a word is not in the vocabulary, the decoder has no attention, or the regions are not a
            square grid.
    """
    vocabulary = captioner.vocabulary
    if unknown := [word for word in words if word not in vocabulary.ids]:
        raise UserError(
            f"{unknown[0]!r} is not in the model's vocabulary; use a caption that the model generated"
        )
    if not words:
        return Attention(np.zeros((0, 1), np.float32), None)
    ids = [vocabulary.start, *(vocabulary.ids[word] for word in words[:-1])]
    features = captioner.features(pixels[None])
    memory = captioner.encode_memory(features)
    output = captioner.decoder(torch.tensor([[ids]], device=pixels.device), memory)
    if output.attention is None:
        raise UserError(f"the decoder {captioner.config.decoder.kind} has no attention to draw")
    maps = output.attention[0, 0].float().cpu().numpy()  # (T, N)
    if features.boxes is not None:
        return Attention(maps, features.boxes[0].float().cpu().numpy())
    if math.isqrt(maps.shape[1]) ** 2 != maps.shape[1]:
        raise UserError(f"{maps.shape[1]} regions are not a square grid; their attention cannot be drawn")
    return Attention(maps, None)


def visible_box(width: int, height: int, preprocessing: Preprocessing) -> Box:
    """The part of a photo that the encoder receives: left, top, right, bottom in the photo's pixels.

    `preprocess` scales the photo and crops the centre. With "long_side" the box extends beyond the photo.
    """
    size = preprocessing.size
    side = preprocessing.side
    if preprocessing.resize == "stretch":
        x_scale, y_scale = width / side, height / side  # photo pixels per preprocessed pixel
    elif preprocessing.resize == "short_side":
        x_scale = y_scale = min(width, height) / side
    else:
        x_scale = y_scale = max(width, height) / side
    half = size / 2
    return (
        width / 2 - half * x_scale,
        height / 2 - half * y_scale,
        width / 2 + half * x_scale,
        height / 2 + half * y_scale,
    )


def project_box(box: np.ndarray, size: tuple[int, int], preprocessing: Preprocessing) -> Box:
    """A box in shares of the encoder's input on a photo of `size` (width, height), in the photo's pixels."""
    left, top, right, bottom = visible_box(*size, preprocessing)
    width, height = right - left, bottom - top
    return (left + width * box[0], top + height * box[1], left + width * box[2], top + height * box[3])


def project_map(weights: np.ndarray, size: tuple[int, int], preprocessing: Preprocessing) -> np.ndarray:
    """A map (rows, columns) on a photo of `size` (width, height): (height, width) in 0 .. 1, its maximum at 1."""
    width, height = size
    left, top, right, bottom = visible_box(width, height, preprocessing)
    scaled = Image.fromarray((weights / weights.max()).astype(np.float32))
    box_size = max(1, round(right - left)), max(1, round(bottom - top))
    canvas = Image.new("F", size, 0.0)
    canvas.paste(scaled.resize(box_size, Image.Resampling.BICUBIC), (round(left), round(top)))
    return np.clip(np.asarray(canvas), 0, 1)
