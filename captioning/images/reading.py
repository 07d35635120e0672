"""Image files -> upright RGB images -> tensors. Knows no captions, no models."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import warnings
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401 -- registers them, and no others

from captioning.errors import UserError
from captioning.utils.file_slice import FileSlice, read_bytes

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""What is opened. Nothing else: PostScript runs programs, and rarely used decoders are rarely mended."""

MAX_PIXELS = 50_000_000

ImageSource = str | os.PathLike[str] | BinaryIO


class BadImage(UserError):
    """A file that cannot be used as an image, and why. Reads as "PATH: REASON"."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        return BadImage, (self.path, self.reason)  # crosses from worker processes


class LoadedImage(NamedTuple):
    """An upright RGB image, and what its reader should be told ("" for nothing)."""

    image: Image.Image
    note: str


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image as upright RGB: EXIF rotation applied, transparency over white, first frame of several.

    Args:
        source: a path (also of a part of a file, see `members`), or an open binary file (standard input, say),
            read from where it stands.
        max_pixels: larger images are refused from their header, before anything is decoded.

    Raises:
        BadImage: the file cannot be used, with the reason in a few words.
    """
    return read_image(source, max_pixels=max_pixels).image


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """As `load_image`, with a note where something was left out (the further frames of an animation)."""
    name = printable(source)
    if not isinstance(source, (str, os.PathLike)):
        return _read(_seekable(source, name), name, max_pixels)
    if FileSlice.parse(os.fsdecode(source)):
        return _read(_part(os.fsdecode(source), name), name, max_pixels)
    try:
        with open(source, "rb", opener=_open_regular) as file:
            return _read(file, name, max_pixels)
    except FileNotFoundError:
        raise BadImage(name, "broken link" if os.path.islink(source) else "no such file") from None
    except IsADirectoryError:
        raise BadImage(name, "a folder, not an image") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadImage(name, f"cannot be read ({reason})") from None


def _part(path: str, name: str) -> BinaryIO:
    try:
        return io.BytesIO(read_bytes(path))
    except UserError as error:
        raise BadImage(name, str(error).removeprefix(f"{path}: ")) from None
    except OSError as error:
        raise BadImage(name, f"cannot be read ({error.strerror})") from None


def printable(source: ImageSource) -> str:
    """The file's name as it can stand in one line of output: what cannot be printed is escaped."""
    name = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "<image>")
    text = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else "<image>"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "replace").decode()
        for letter in text
    )


def _open_regular(path: str, flags: int) -> int:
    """`os.open`, but a pipe or a device is an error and does not block."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError
    raise OSError("not a regular file")


def _seekable(file: BinaryIO, name: str) -> BinaryIO:
    try:
        return file if file.seekable() else io.BytesIO(file.read())
    except (OSError, ValueError) as error:
        raise BadImage(name, f"cannot be read ({error})") from None


def _read(file: BinaryIO, name: str, max_pixels: int) -> LoadedImage:
    with warnings.catch_warnings():
        # what matters of what Pillow warns of (size, damage) becomes an error below
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return _decode(file, name, max_pixels)


def _decode(file: BinaryIO, name: str, max_pixels: int) -> LoadedImage:
    start = file.tell()
    head = file.read(1024)
    file.seek(start)
    if reason := refusal(head):
        raise BadImage(name, reason)
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:  # Pillow's own limit, above ours
        raise BadImage(name, f"over {max_pixels / 1e6:g} megapixels; scale it down first") from None
    except Image.UnidentifiedImageError:
        raise BadImage(name, "not an image that can be read (unknown or damaged header)") from None
    except Exception as error:  # decoders raise nearly everything on damaged input
        raise BadImage(name, f"truncated or corrupt file ({_one_line(error)})") from None
    with image:
        kind, (width, height) = image.format, image.size
        if width * height > max_pixels:
            raise BadImage(
                name,
                f"{width} x {height} pixels, over {max_pixels / 1e6:g} megapixels; scale it down first",
            )
        try:
            image.load()
            if kind == "JPEG" and _ended_early(file, start, image):
                raise OSError("the data ends before the picture does")
            rgb = _upright(to_rgb(image), image)
        except _Unsupported as error:
            raise BadImage(name, str(error)) from None
        except Exception as error:
            raise BadImage(name, f"truncated or corrupt {kind} ({_one_line(error)})") from None
        # MPO: a camera's JPEG with previews of the same picture behind it
        several = kind != "MPO" and _has_further_frames(image)
    return LoadedImage(rgb, f"{name}: has several frames, the first is used" if several else "")


def _ended_early(file: BinaryIO, start: int, image: Image.Image) -> bool:
    """Whether a JPEG that decoded without complaint lacks part of its picture.

    libjpeg paints what it has no data for in mid-grey, and says so only to those who ask for its warnings.
    Two such files are common: downloads cut and then closed with an end marker, and downloads into a file
    that was made full of zeros beforehand. (A progressive one that is cut late only lacks sharpness.)
    """
    file.seek(-16, os.SEEK_END)
    zeros = not any(file.read(16))
    last = image.getpixel((image.width - 1, image.height - 1))
    bands = last if isinstance(last, tuple) else (last,)
    if not zeros and any(band not in (127, 128) for band in bands):
        return False
    file.seek(start)
    data = file.read()
    scan = _first_scan(data)
    end = data.find(b"\xff\xd9", scan)
    if end < 0:
        return zeros
    # with more data where it ends, a whole picture stays as it is and a cut one changes
    more = re.split(rb"\xff[^\x00]", data[scan:end], maxsplit=1)[0]
    longer = Image.open(io.BytesIO(data[:end] + more + data[end:]), formats=("JPEG",))
    return longer.tobytes() != image.tobytes()


def _first_scan(data: bytes) -> int:
    """Where the compressed data of a JPEG begins: behind the header of its first scan (ITU T.81, annex B)."""
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            break
    return at


def _has_further_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame takes nothing from the first
        return True


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_NOT_ALLOWED = (
    (0, b"%!PS", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "PSD"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypheic", "HEIC"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"icns", "ICNS"),
    (0, b"PK\x03\x04", "ZIP"),
)


_PRINTABLE = bytes((*b"\t\n\r", *range(32, 127), *range(128, 256)))


def refusal(head: bytes) -> str | None:
    """Why a file that begins with `head` is none of `FORMATS`, where that can be told; else None."""
    if not head:
        return "not an image (empty file)"
    for offset, magic, kind in _NOT_ALLOWED:
        if head[offset : offset + len(magic)] == magic:
            return f"format not allowed ({kind}); convert it to PNG or JPEG"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in text and text.startswith((b"<?xml", b"<svg", b"<!--", b"<!doctype svg")):
        return "format not allowed (SVG); convert it to PNG or JPEG"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "not an image (looks like HTML)"
    if text.startswith((b"<?xml", b"<!--")):
        return "not an image (looks like XML)"
    if head[:1] != b"P" and not head.strip(b"\0"):
        return "not an image (only zero bytes)"
    if not head.translate(None, _PRINTABLE) and not _looks_like_image(head):
        return "not an image (looks like text)"
    return None


def _looks_like_image(head: bytes) -> bool:
    """Whether `head` begins as one of the few image formats do whose first kilobyte may be all printable."""
    return (
        head[:3] == b"\xff\xd8\xff"
        or head[:3] == b"GIF"
        or head[:2] == b"BM"
        or (head[:1] == b"P" and head[1:2] in b"123456fy")
    )


class _Unsupported(Exception):
    pass


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode Pillow decodes to -> RGB; transparency over white, 16 bits a channel scaled linearly to 8."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_deep(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError:
        raise _Unsupported(f"colour mode {image.mode} not supported; convert it to RGB") from None


def _from_deep(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits -> RGB, linearly. Pillow's own `convert` cuts everything above 255 to white.

    16 bits span 0 .. 65535, as do 32-bit integers that fit; floats 0 .. 1. Beyond: the largest is white.
    """
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    usual = 1.0 if image.mode == "F" else 65535.0
    white = max(usual, float(values.max(initial=0.0)))
    grey = np.clip(values / white, 0.0, 1.0)
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # one grey value stands for "nothing here"
        grey[values == clear] = 1.0
    return Image.fromarray(np.round(grey * 255).astype(np.uint8)).convert("RGB")


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation (EXIF 2.3, tag 0x0112) -> what makes the pixels upright."""


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        orientation = 1  # damaged EXIF is no reason to do without the pixels
    how = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return rgb if how is None else rgb.transpose(how)
