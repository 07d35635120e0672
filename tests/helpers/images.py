"""Images for tests."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 61, 43


def scene(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A smooth image in many colours, without symmetries and without details that JPEG would blur."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack(
        [40 + 180 * x / width, 220 - 170 * y / height, 60 + 90 * (x + 2 * y) / (width + height)], -1
    )
    return Image.fromarray(pixels.astype(np.uint8))


def mean_difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean())


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
