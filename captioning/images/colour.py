"""Conversion of every colour mode to RGB, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

_BLOCK_PIXELS = 1 << 20


class UnsupportedMode(Exception):
    """A colour mode that cannot be converted to RGB."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode of Pillow to RGB: transparency over white, 16 bits a channel scaled linearly to 8.

    Rows are converted in blocks, which bounds the memory.
    """
    white = _white(image) if image.mode in ("I", "F") or image.mode.startswith("I;16") else None
    if image.width * image.height <= _BLOCK_PIXELS:
        return _block_to_rgb(image, white)
    rgb = Image.new("RGB", image.size)
    for block, top in _blocks(image):
        rgb.paste(_block_to_rgb(block, white), (0, top))
    return rgb


def _blocks(image: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """Blocks of rows, and the number of the first row of each."""
    step = max(1, _BLOCK_PIXELS // image.width)
    for top in range(0, image.height, step):
        yield image.crop((0, top, image.width, min(top + step, image.height))), top


def _block_to_rgb(image: Image.Image, white: float | None) -> Image.Image:
    if white is not None:
        return _scale_deep(image, white)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(background, rgba).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError:
        raise UnsupportedMode(f"colour mode {image.mode} not supported; convert it to RGB") from None


def _white(image: Image.Image) -> float:
    """The white of grey with more than 8 bits: 65535, for floats 1, or the largest value if that is greater."""
    white = 1.0 if image.mode == "F" else 65535.0
    for block, _ in _blocks(image):
        values = np.asarray(block)
        white = max(white, float(np.max(values, initial=0.0, where=np.isfinite(values))))
    return white


def _scale_deep(image: Image.Image, white: float) -> Image.Image:
    """Convert grey of more than 8 bits to RGB, linearly; Pillow's own `convert` clips all values above 255."""
    finite = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    scaled = np.clip(finite / white, 0.0, 1.0)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # this grey value marks transparent pixels
        scaled[finite == transparent] = 1.0
    return Image.fromarray(np.round(scaled * 255).astype(np.uint8)).convert("RGB")
