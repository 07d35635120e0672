"""Reading image files: damaged, hostile and unusual ones, colour modes, orientations and limits."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, FitsImagePlugin, Image, PsdImagePlugin

from captioning.errors import UserError
from captioning.images.reading import BadImage, load_image, read_image
from tests.helpers.images import HEIGHT, WIDTH, encoded, mean_difference, scene


def reason_of(path: Path | str) -> str:
    with pytest.raises(BadImage) as caught:
        load_image(path)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(caught.value.reason)
    return caught.value.reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image (empty file)"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "not an image (looks like HTML)"),
        (b"\xef\xbb\xbf  \n<html lang='en'>", "not an image (looks like HTML)"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "not an image (looks like XML)"),
        (b"a dog runs over the grass\n", "not an image (looks like text)"),
        ("ein Hund läuft über die Wiese\n".encode(), "not an image (looks like text)"),
        (bytes(5000), "not an image (only zero bytes)"),
        (bytes(range(256)) * 7, "not an image that can be read (unknown or damaged header)"),
    ],
)
def test_files_that_are_not_images(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    assert reason_of(path) == reason


def test_message_starts_with_the_file(tmp_path: Path):
    path = tmp_path / "x.jpg"
    path.touch()
    with pytest.raises(UserError, match=r"/x\.jpg: not an image \(empty file\)$"):
        load_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, kind: str, share: float):
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    load_image(path)
    path.write_bytes(data[: int(len(data) * share)])
    assert "truncated" in reason_of(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_every_cut_of_a_jpeg_is_refused_or_harmless(tmp_path: Path, progressive: bool):
    """At every length the file is refused, or only the end marker is missing and all pixels are there."""
    noise = np.random.default_rng(1).integers(0, 256, (29, 31, 3), np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG", progressive=progressive)
    whole = np.asarray(load_image(io.BytesIO(data)))
    accepted = []
    for length in range(1, len(data)):
        try:
            image = load_image(io.BytesIO(data[:length]))
        except BadImage:
            continue
        np.testing.assert_array_equal(np.asarray(image), whole)
        accepted.append(length)
    assert len(accepted) <= 8


def test_cut_jpeg_with_end_marker_is_refused():
    """Some downloaders append an end marker to a broken file; decoders then fill the rest with grey."""
    noise = np.random.default_rng(2).integers(0, 256, (97, 101, 3), np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    for share in (0.4, 0.7, 0.95):
        with pytest.raises(BadImage, match="truncated"):
            load_image(io.BytesIO(data[: int(len(data) * share)] + b"\xff\xd9"))


def test_jpeg_that_ends_in_zeros_is_refused():
    """An interrupted download into a preallocated file."""
    noise = np.random.default_rng(2).integers(0, 256, (97, 101, 3), np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    for share in (0.4, 0.7, 0.95):
        kept = int(len(data) * share)
        with pytest.raises(BadImage, match="truncated"):
            load_image(io.BytesIO(data[:kept] + bytes(len(data) - kept)))


def test_complete_grey_jpegs_are_accepted():
    for colour in ((128, 128, 128), (255, 255, 255), (0, 0, 0)):
        for mode in ("RGB", "L"):
            for progressive in (False, True):
                plain = Image.new("RGB", (67, 53), colour).convert(mode)
                data = encoded(plain, "JPEG", progressive=progressive)
                assert load_image(io.BytesIO(data)).getpixel((66, 52)) == colour
    half = scene(64, 64)
    half.paste((128, 128, 128), (0, 32, 64, 64))
    for progressive in (False, True):
        data = encoded(half, "JPEG", quality=95, progressive=progressive)
        assert mean_difference(load_image(io.BytesIO(data)), half) < 2
        assert load_image(io.BytesIO(data)).getpixel((63, 63)) == (128, 128, 128)


def test_a_png_with_a_flipped_bit_is_refused():
    data = bytearray(encoded(scene(), "PNG"))
    data[len(data) // 2] ^= 4
    with pytest.raises(BadImage, match="truncated or corrupt PNG"):
        load_image(io.BytesIO(bytes(data)))


def test_randomly_damaged_files_give_an_image_or_a_bad_image_error():
    generator = np.random.default_rng(3)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        data = np.frombuffer(encoded(scene(), kind), np.uint8)
        for _ in range(60):
            damaged = data.copy()
            where = generator.integers(0, min(len(data), 300), 5)
            damaged[where] = generator.integers(0, 256, 5)
            try:
                assert load_image(io.BytesIO(damaged.tobytes())).mode == "RGB"
            except BadImage as error:
                assert "\n" not in str(error)


@pytest.fixture
def no_other_decoders(monkeypatch: pytest.MonkeyPatch):
    def called(*_: object, **__: object):
        raise AssertionError("a decoder that is not allowed was called")

    for plugin in (EpsImagePlugin.EpsImageFile, FitsImagePlugin.FitsImageFile, PsdImagePlugin.PsdImageFile):
        monkeypatch.setattr(plugin, "_open", called)
        monkeypatch.setattr(plugin, "load", called)
    monkeypatch.setattr(subprocess, "Popen", called)  # Ghostscript


PSD = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 5, 7, 8, 3) + bytes(14) + bytes(3 * 35)
FITS = b"".join(
    f"{line:80}".encode()
    for line in ("SIMPLE  =                    T", "BITPIX  =                    8", "END")
).ljust(2880) + bytes(2880)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("EPS", encoded(scene(), "EPS")),
        ("PDF", encoded(scene(), "PDF")),
        ("PSD", PSD),
        ("FITS", FITS),
        ("SVG", b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("SVG", b"<svg width='5' height='7'></svg>"),
        ("JPEG 2000", encoded(scene(), "JPEG2000")),
        ("ICO", encoded(scene(), "ICO")),
    ],
)
@pytest.mark.parametrize("suffix", [".jpg", ".eps", ".pdf"])
def test_other_formats_are_refused_without_decoding(
    tmp_path: Path, no_other_decoders: None, name: str, content: bytes, suffix: str
):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    assert reason_of(path).startswith(f"format not allowed ({name})")


@pytest.mark.parametrize("kind", ["TGA", "PCX", "SGI", "DDS", "ICNS", "IM"])
def test_all_other_formats_of_pillow_are_refused(kind: str):
    with pytest.raises(BadImage):
        load_image(io.BytesIO(encoded(scene(64, 64), kind)))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG"])
def test_rgb_round_trip(kind: str):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    image = load_image(io.BytesIO(encoded(scene(), kind, **options)))
    assert image.size == (WIDTH, HEIGHT)
    assert mean_difference(image, scene()) <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str):
    data = encoded(scene().convert("CMYK"), kind)
    assert mean_difference(load_image(io.BytesIO(data)), scene()) <= 10


def test_palette():
    colours = scene().quantize(11)
    data = encoded(colours, "PNG")
    assert Image.open(io.BytesIO(data)).mode == "P"
    assert mean_difference(load_image(io.BytesIO(data)), colours.convert("RGB")) == 0


def test_one_bit():
    bits = scene().convert("1")
    assert 0.1 < np.asarray(bits).mean() < 0.9
    for kind in ("PNG", "TIFF", "BMP"):
        image = load_image(io.BytesIO(encoded(bits, kind)))
        np.testing.assert_array_equal(np.asarray(image)[..., 1], np.asarray(bits) * 255)


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return pixels * share + 255 * (1 - share)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_over_white(mode: str, kind: str):
    alpha = np.linspace(0, 255, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint8)
    picture = scene().convert(mode)
    picture.putalpha(Image.fromarray(alpha))
    data = encoded(picture, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    expected = over_white(np.asarray(picture.convert("RGBA"))[..., :3].astype(float), alpha.astype(float))
    assert np.abs(np.asarray(load_image(io.BytesIO(data)), float) - expected).max() <= 2


def test_transparent_palette_and_colour_key_are_white():
    colours = scene().quantize(11)
    clear = colours.getpixel((0, 0))
    keyed = load_image(io.BytesIO(encoded(colours, "PNG", transparency=clear)))
    assert keyed.getpixel((0, 0)) == (255, 255, 255)
    kept = np.asarray(colours) != clear
    np.testing.assert_array_equal(np.asarray(keyed)[kept], np.asarray(colours.convert("RGB"))[kept])
    grey = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7))
    assert load_image(io.BytesIO(encoded(grey, "PNG", transparency=0))).getpixel((0, 0)) == (255, 255, 255)
    gif = load_image(io.BytesIO(encoded(colours, "GIF", transparency=clear)))
    assert gif.getpixel((0, 0)) == (255, 255, 255)


def deep_png(values: np.ndarray) -> bytes:
    """A 16-bit grey PNG, written by hand (PNG specification, sections 5 and 11)."""
    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF big-endian", "PPM"])
def test_sixteen_bits_are_scaled_linearly(kind: str):
    values = np.linspace(0, 65535, 5 * 7).reshape(5, 7).astype(np.uint16)
    if kind == "PNG":
        data = deep_png(values)
    elif kind == "PPM":
        data = b"P5 7 5 65535\n" + values.astype(">u2").tobytes()
    else:
        data = encoded(Image.fromarray(values), "TIFF")
        if kind == "TIFF big-endian":
            data = encoded(Image.frombytes("I;16B", (7, 5), values.astype(">u2").tobytes()), "TIFF")
    image = np.asarray(load_image(io.BytesIO(data)), float)
    assert np.abs(image - values[..., None] / 257).max() <= 1
    assert image.min() == 0 and image.max() == 255


def test_sixteen_bit_colour_is_scaled_linearly():
    values = np.random.default_rng(5).integers(0, 65536, (5, 7, 3), np.uint16)
    data = b"P6 7 5 65535\n" + values.astype(">u2").tobytes()
    assert np.abs(np.asarray(load_image(io.BytesIO(data)), float) - values / 257).max() <= 1


def test_integers_and_floats_of_32_bits():
    small = np.linspace(0, 65535, 35).reshape(5, 7)
    large = small * 1000
    for values in (small.astype(np.int32), large.astype(np.int32), (small / 65535).astype(np.float32)):
        image = np.asarray(load_image(io.BytesIO(encoded(Image.fromarray(values), "TIFF"))), float)
        assert np.abs(image - (small / 257)[..., None]).max() <= 1
    broken = np.array([[np.nan, np.inf, 0.5]], np.float32)
    assert load_image(io.BytesIO(encoded(Image.fromarray(broken), "TIFF"))).getpixel((2, 0)) == (
        128,
        128,
        128,
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_all_orientations_equal_the_upright_pixels(orientation: int, kind: str):
    """The stored pixels place row 0 and column 0 according to EXIF's table."""
    upright = np.asarray(scene(64, 48))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    image = load_image(io.BytesIO(data))
    assert image.size == (64, 48)
    assert np.abs(np.asarray(image, float) - upright).max() <= (6 if kind == "JPEG" else 0)


def test_damaged_exif_is_ignored():
    for exif in (b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        data = encoded(scene(), "JPEG", exif=exif, quality=95)
        assert mean_difference(load_image(io.BytesIO(data)), scene()) < 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_and_a_note_for_animations(kind: str):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    frames = [Image.new("RGB", (13, 7), colour) for colour in colours]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    image, notes = read_image(io.BytesIO(data))
    assert image.size == (13, 7) and set(image.getdata()) == {colours[0]}
    assert notes == ("has several frames, the first is used",)
    assert read_image(io.BytesIO(encoded(frames[0], kind, **options))).notes == ()


def test_photo_followed_by_previews():
    """Phones write MPO, a JPEG followed by previews; the photo is used, without a note."""
    data = encoded(scene(), "MPO", save_all=True, append_images=[scene(31, 29)], quality=95)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    image, notes = read_image(io.BytesIO(data))
    assert notes == () and mean_difference(image, scene()) < 2


HUGE = """
import resource, sys
from captioning.images.reading import BadImage, load_image

for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load_image(path)
        print("accepted", end=" ")
    except BadImage as error:
        print(error.reason, end=" ")
    print("MB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_over_50_megapixels_is_refused_from_the_header(tmp_path: Path):
    """Small files with 50.4 to 400 megapixels must not raise the peak memory of the process."""
    for kind, options in (
        ("JPEG", {}),
        ("PNG", {}),
        ("GIF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True, "method": 0}),
    ):
        Image.new("L", (7100, 7100)).save(tmp_path / f"50.{kind}", kind, **options)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "400.png")
    paths = sorted(tmp_path.iterdir())
    done = subprocess.run([sys.executable, "-c", HUGE, *paths], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths) == 6 and not done.stderr
    for line in lines:
        reason, megabytes = line.split("MB")
        assert "over 50 megapixels" in reason
        assert float(megabytes) < 100


def test_max_pixels_is_an_argument():
    data = encoded(scene(10, 10), "PNG")
    assert load_image(io.BytesIO(data), max_pixels=100).size == (10, 10)
    with pytest.raises(BadImage, match="10 x 10 pixels, over"):
        load_image(io.BytesIO(data), max_pixels=99)


@pytest.mark.parametrize(
    "name", ["two words.jpg", "Grüße 狗 🐕.jpg", "a\nb.jpg", "-rf", "x.JPG.1", "%s{0}.png", b"\xff\xfe.jpg"]
)
def test_unusual_names_are_printed_on_one_line(tmp_path: Path, name: str | bytes):
    path = os.path.join(tmp_path, os.fsdecode(name))
    scene().save(path, "PNG")
    assert load_image(path).size == (WIDTH, HEIGHT)
    with open(path, "wb"):
        pass
    with pytest.raises(BadImage) as caught:
        load_image(path)
    message = str(caught.value)
    assert "\n" not in message and message.encode() and message.isprintable()


def test_paths_that_cannot_be_opened(tmp_path: Path):
    assert reason_of(tmp_path / "missing.jpg") == "no such file"
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert reason_of(tmp_path / "link.jpg") == "broken link"
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert reason_of(tmp_path / "loop.jpg").startswith("cannot be read")
    assert reason_of(tmp_path) == "a folder, not an image"
    assert reason_of(tmp_path / ("x" * 300)).startswith("cannot be read")
    assert reason_of(str(tmp_path / "nul\0.jpg")).startswith("cannot be read")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason_of(tmp_path / "pipe.jpg") == "cannot be read (not a regular file)"


def test_an_unreadable_file(tmp_path: Path):
    path = tmp_path / "x.jpg"
    scene().save(path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert reason_of(path) == "cannot be read (Permission denied)"


def test_a_file_that_fails_while_it_is_read():
    if not os.path.exists("/proc/self/mem"):
        pytest.skip("needs Linux's /proc")
    assert reason_of("/proc/self/mem") == "cannot be read (Input/output error)"


def test_open_files_and_streams():
    data = encoded(scene(), "PNG")
    assert load_image(io.BytesIO(data)).size == (WIDTH, HEIGHT)
    read, write = os.pipe()
    with open(read, "rb") as pipe:
        with open(write, "wb") as end:
            end.write(data)
        assert load_image(pipe).size == (WIDTH, HEIGHT)


def test_bad_image_can_be_pickled(tmp_path: Path):
    with pytest.raises(BadImage) as caught:
        load_image(tmp_path / "missing.jpg")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is BadImage and str(copy) == str(caught.value) and copy.reason == "no such file"
