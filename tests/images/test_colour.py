"""Conversion to RGB in blocks of rows, beside the conversion of the whole image."""

import numpy as np
import pytest
from PIL import Image

from captioning.images import colour


def image_of(mode: str) -> Image.Image:
    dice = np.random.default_rng(3)
    if mode in ("I", "I;16", "F"):
        values = dice.integers(0, 70_000 if mode == "I" else 65_536, (31, 17))
        return Image.fromarray(values.astype({"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]))
    return Image.fromarray(dice.integers(0, 256, (31, 17, 4), np.uint8)).convert(mode)


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"]
)
def test_blocks_of_rows_give_the_same_pixels(mode, transparent, monkeypatch):
    image = image_of(mode)
    if transparent:
        image.info["transparency"] = (7, 8, 9) if mode == "RGB" else int(np.asarray(image_of(mode)).flat[5])
        if mode not in ("1", "L", "P", "RGB", "I", "I;16"):
            pytest.skip("no file has a transparent value in this mode")
    whole = np.asarray(colour.to_rgb(image))
    monkeypatch.setattr(colour, "_BLOCK_PIXELS", 17 * 5)
    assert np.array_equal(colour.to_rgb(image), whole) and whole.shape == (31, 17, 3)
