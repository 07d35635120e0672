"""Memory that one image takes, and all images that threads decode at a time."""

import io
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from captioning.images import reading
from tests.helpers.images import encoded
from tests.helpers.running import python

SIDE = 3500
BYTES_PER_PIXEL = 16

MEASURE = """
import sys
from captioning.images.reading import read_image
def highest():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
read_image(sys.argv[1])
before = highest()
read_image(sys.argv[2])
print(highest() - before)
"""


def rotated() -> bytes:
    image = Image.new("RGB", (SIDE, SIDE))
    image.getexif()[0x112] = 6
    return encoded(image, "JPEG", exif=image.getexif())


def with_text() -> bytes:
    """An image of 400 pixels with 200 MB of text and as much colour profile, in 390 kB."""
    info = PngImagePlugin.PngInfo()
    info.add(b"zTXt", b"comment\0\0" + zlib.compress(bytes(200_000_000), 1))
    info.add(b"iCCP", b"profile\0\0" + zlib.compress(bytes(200_000_000), 1))
    return encoded(Image.new("RGB", (20, 20)), "PNG", pnginfo=info)


FILES = {
    "16 bits": lambda: encoded(Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)), "PNG"),
    "alpha": lambda: encoded(Image.new("LA", (SIDE, SIDE)), "PNG"),
    "palette": lambda: encoded(Image.new("P", (SIDE, SIDE)), "PNG", transparency=0),
    "rotated": rotated,
    "text": with_text,
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", FILES)
def test_an_image_takes_a_few_bytes_a_pixel(kind, tmp_path):
    """An implementation that converts the whole image at once takes 20 to 34 bytes a pixel for these."""
    (tmp_path / "small").write_bytes(encoded(Image.new("RGB", (20, 20)), "PNG"))
    (tmp_path / "large").write_bytes(FILES[kind]())
    assert (tmp_path / "large").stat().st_size < 2_000_000
    done = python(MEASURE, str(tmp_path / "small"), str(tmp_path / "large"))
    pixels = 400 if kind == "text" else SIDE * SIDE
    assert int(done.out) < BYTES_PER_PIXEL * pixels + 10_000_000, done.err


def test_threads_share_a_budget_of_pixels(monkeypatch):
    budget, lock, active, highest = 5000, threading.Lock(), [], []
    monkeypatch.setattr(reading, "_BUDGET", reading._PixelBudget(budget))
    decode = reading._decode_pixels

    def watched(image, *arguments):
        with lock:
            active.append(image.width * image.height)
            highest.append(tuple(active))
        try:
            return decode(image, *arguments)
        finally:
            with lock:
                active.remove(image.width * image.height)

    monkeypatch.setattr(reading, "_decode_pixels", watched)
    dice = np.random.default_rng(0)
    sides = [(int(width), int(height)) for width, height in dice.integers(20, 60, (60, 2))] + [(90, 80)] * 3
    files = [encoded(Image.new("RGB", size), "PNG") for size in sides]
    broken = files[0][:-20]

    def load(data):
        try:
            return reading.load_image(io.BytesIO(data)).size
        except reading.BadImage:
            return None

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(load, [*files, broken])) == [*sides, None]
    assert all(sum(together) <= budget or len(together) == 1 for together in highest)
    assert (
        max(map(len, highest)) > 1 and not active
    )  # they do run side by side, and a broken file gives its share back
