"""Half pictures: files of every format whose end was lost, in the three ways in which downloads lose it."""

import io
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from captioning.images.integrity import find_damage, uniform_part, without_metadata
from captioning.images.reading import BadImage, load_image, read_image

END = {"PNG": b"\0\0\0\0IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}
CASES = {
    "png rgb": ("PNG", "RGB", {}), "png rgba": ("PNG", "RGBA", {}), "png grey": ("PNG", "L", {}),
    "png grey alpha": ("PNG", "LA", {}), "png bits": ("PNG", "1", {}), "webp": ("WEBP", "RGB", {"quality": 85}),
    "webp lossless": ("WEBP", "RGB", {"lossless": True}), "bmp": ("BMP", "RGB", {}), "ppm": ("PPM", "RGB", {}),
    "tiff": ("TIFF", "RGB", {}), "gif": ("GIF", "P", {}), "jpeg": ("JPEG", "RGB", {"quality": 90}),
    "jpeg progressive": ("JPEG", "RGB", {"quality": 90, "progressive": True}),
    "jpeg grey": ("JPEG", "L", {"quality": 90}), "mpo": ("MPO", "RGB", {"save_all": True}),
}  # fmt: skip


def picture(seed: int) -> Image.Image:
    """A smooth picture with edges and grain, none of whose rows has one colour."""
    dice = np.random.default_rng(seed)
    coarse = dice.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((211, 163), Image.Resampling.BICUBIC)
    grain = dice.normal(0, 9, (163, 211, 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, mode: str, options: dict) -> bytes:
    file = io.BytesIO()
    more = {"append_images": [image.resize((97, 61))]} if kind == "MPO" else {}
    image.convert(mode).save(file, kind, **options, **more)
    return file.getvalue()


REFUSED = dict.fromkeys(CASES, 27) | {
    "bmp": 9, "ppm": 9, "tiff": 9,  # without a checksum: a part of one colour may belong to the picture
    "jpeg progressive": 21,  # cut in a late scan and closed: all rows are there, less sharp
    "mpo": 18,  # cut in the preview behind the picture
}  # fmt: skip
"""Tries of 27 that are refused: 3 pictures, cut at 3 places, the rest zeros, 0xff or the format's end marker."""

NOTED = {"bmp": 18, "ppm": 18, "tiff": 18}
"""Tries that are accepted with a note on a part of one colour."""


@pytest.mark.parametrize("case", CASES)
def test_a_lost_end_is_refused_or_noted(case):
    """What is neither refused nor noted looks like the picture: it differs by up to 8 of 255 on average."""
    kind, mode, options = CASES[case]
    counts = Counter()
    for seed in range(3):
        data = encoded(picture(seed), kind, mode, options)
        whole = load_image(io.BytesIO(data))
        assert find_damage(data, kind) is None and not uniform_part(whole)
        for share in (0.3, 0.6, 0.85):
            cut = int(share * len(data))
            for tail in (bytes(len(data) - cut), b"\xff" * (len(data) - cut), END.get(kind, b"")):
                try:
                    found, notes = read_image(io.BytesIO(data[:cut] + tail))
                except BadImage:
                    counts["refused"] += 1
                    continue
                error = np.abs(np.asarray(found, float) - np.asarray(whole, float)).mean()
                counts[
                    "noted" if "is one colour" in "".join(notes) else "near" if error <= 8 else "silent"
                ] += 1
    refused, noted = REFUSED[case], NOTED.get(case, 0)
    assert counts == Counter(refused=refused, noted=noted, near=27 - refused - noted)


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (17, 13)])
def test_a_whole_png_of_any_kind_is_complete(mode, size, interlace):
    file = io.BytesIO()
    dice = np.random.default_rng(5)
    if mode == "I;16":
        image = Image.fromarray(dice.integers(0, 65536, size[::-1], dtype=np.uint16))
    else:
        image = Image.fromarray(dice.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode)
    image.save(file, "PNG")
    data = interlaced(image, file.getvalue()) if interlace else file.getvalue()
    assert find_damage(data, "PNG") is None


def chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def interlaced(image: Image.Image, data: bytes) -> bytes:
    """The PNG's header with the interlace flag, and pixel data of as many bytes as the specification says (Adam7)."""
    header = bytearray(data[16:29])
    header[12] = 1
    width, height = image.size
    bits = {
        (1, 0): 1,
        (2, 3): 2,
        (4, 3): 4,
        (8, 3): 8,
        (8, 0): 8,
        (8, 4): 16,
        (8, 2): 24,
        (8, 6): 32,
        (16, 0): 16,
    }[header[8], header[9]]
    size = 0
    for x0, y0, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        columns, rows = len(range(x0, width, dx)), len(range(y0, height, dy))
        size += rows * (1 + -(-columns * bits // 8)) if columns else 0
    return (
        data[:8]
        + chunk(b"IHDR", bytes(header))
        + chunk(b"IDAT", zlib.compress(bytes(size)))
        + chunk(b"IEND", b"")
    )


def test_large_metadata_is_left_out_and_pixels_stay():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 3_000_000, zip=True)
    file = io.BytesIO()
    image = picture(1)
    image.save(file, "PNG", pnginfo=info, icc_profile=bytes(3_000_000))
    small = without_metadata(file.getvalue())
    assert find_damage(file.getvalue(), "PNG") is None
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(small))), np.asarray(image))
    assert b"zTXt" not in small and b"iCCP" not in small


@pytest.mark.parametrize("colour", ["black", "white", "red"])
@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_of_one_colour_is_whole(colour, lossless):
    """Its compressed data ends in zeros as well."""
    image = Image.new("RGB", (1500, 2000), colour)
    data = encoded(image, "WEBP", "RGB", {"lossless": lossless})
    assert not read_image(io.BytesIO(data)).notes


def test_a_jpeg_of_thousands_of_scans_is_refused():
    data = encoded(picture(2), "JPEG", "RGB", {"progressive": True})
    last = data.rindex(b"\xff\xda")
    assert "scans" in find_damage(data[:-2] + data[last:-2] * 200 + b"\xff\xd9", "JPEG")


@pytest.mark.parametrize(
    ("rows", "note"),
    [(0, ""), (5, ""), (60, "lower 36 % is one colour"), (-60, "upper 36 % is one colour"), (163, "")],
)
def test_a_part_of_one_colour_is_noted(rows, note):
    pixels = np.asarray(picture(0)).copy()
    if rows > 0:
        pixels[len(pixels) - rows :] = (7, 7, 9)
    elif rows:
        pixels[:-rows] = 255
    assert uniform_part(Image.fromarray(pixels)) == note
