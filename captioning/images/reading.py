"""Read image files, which may be damaged or hostile, as upright RGB images."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from PIL import Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401 -- registers them, and no others

from captioning.errors import UserError, escape_unprintable
from captioning.images.colour import UnsupportedMode, to_rgb
from captioning.images.integrity import (
    CHECKED_FORMATS,
    find_damage,
    lost_its_end,
    png_size,
    uniform_part,
    without_metadata,
)
from captioning.utils.file_slice import FileSlice, read_bytes

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""The accepted formats. PostScript would run programs, and decoders of rare formats are rarely maintained."""

MAX_PIXELS = 50_000_000
MAX_BYTES = 10 * MAX_PIXELS
"""Of a file that is read whole to check it."""


ImageSource = str | os.PathLike[str] | BinaryIO


class BadImage(UserError):
    """A file that cannot be used as an image; its message is "PATH: REASON"."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        return BadImage, (self.path, self.reason)  # worker processes pickle it


LOST_END = "the file may have lost its end"
"""End of the note on a picture of which a part has one colour, which an intact picture may have as well."""


class LoadedImage(NamedTuple):
    """An upright RGB image, and notes on it: frames that were left out, a part that may be lost."""

    image: Image.Image
    notes: tuple[str, ...] = ()


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Load an image as upright RGB: EXIF rotation applied, transparency over white, first frame of several.

    Args:
        source: a path, also of a slice of a file (`utils.file_slice`), or an open binary file such as standard
            input, which is read from its current position.
        max_pixels: larger images are refused after reading their header, before anything is decoded.

    Raises:
        BadImage: the file cannot be used; gives the reason in a few words.
    """
    return read_image(source, max_pixels=max_pixels).image


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Like `load_image`, with notes on what may be wrong with the image (see `LoadedImage`)."""
    name = printable(source)
    if not isinstance(source, (str, os.PathLike)):
        return _read(_seekable(source, name), name, max_pixels)
    if FileSlice.parse(os.fsdecode(source)):
        return _read(_open_slice(os.fsdecode(source), name), name, max_pixels)
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


def _open_slice(path: str, name: str) -> BinaryIO:
    try:
        return io.BytesIO(read_bytes(path))
    except UserError as error:
        raise BadImage(name, str(error).removeprefix(f"{path}: ")) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise BadImage(name, f"cannot be read ({getattr(error, 'strerror', None) or error})") from None


def printable(source: ImageSource) -> str:
    """The file's name for one line of output, with unprintable characters escaped."""
    name = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "<image>")
    return escape_unprintable(os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else "<image>")


def _open_regular(path: str, flags: int) -> int:
    """`os.open` that raises an error for a pipe or a device, which would block."""
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
        # the size and damage that Pillow warns of are raised as errors below
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return _decode(file, name, max_pixels)


def _decode(file: BinaryIO, name: str, max_pixels: int) -> LoadedImage:
    start = file.tell()
    head = file.read(1024)
    file.seek(start)
    if problem := format_problem(head):
        raise BadImage(name, problem)
    limit = f"over {max_pixels / 1e6:g} megapixels; scale it down first"
    data = b""
    if (size := png_size(head)) and size[0] * size[1] <= max_pixels:
        try:
            data = _read_whole(file, start)
        except OSError as error:
            raise BadImage(name, f"cannot be read ({_one_line(error)})") from None
        file, start = io.BytesIO(without_metadata(data)), 0
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:  # Pillow's own limit, which is higher
        raise BadImage(name, limit) from None
    except Image.UnidentifiedImageError:
        raise BadImage(name, "not an image that can be read (unknown or damaged header)") from None
    except Exception as error:  # decoders raise nearly every exception on damaged input
        raise BadImage(name, f"truncated or corrupt file ({_one_line(error)})") from None
    pixels = image.width * image.height
    with image:
        if pixels > max_pixels:
            raise BadImage(name, f"{image.width} x {image.height} pixels, {limit}")
        with _BUDGET.reserve(pixels):
            return _decode_pixels(image, file, start, data, name)


def _decode_pixels(image: Image.Image, file: BinaryIO, start: int, data: bytes, name: str) -> LoadedImage:
    """Decode an opened image, at up to 16 bytes a pixel. `data` is the file's content if it was read already."""
    image_format = image.format or ""
    try:
        if image_format in CHECKED_FORMATS:
            data = data or _read_whole(file, start)
            if problem := find_damage(data, image_format):
                raise OSError(problem)
        image.load()
        if image_format in ("JPEG", "MPO") and _is_incomplete_jpeg(file, start, image):
            raise OSError("the data ends before the image does")
        stored = to_rgb(image)
        if lost_its_end(data, image_format, stored):
            raise OSError("the data ends before the image does")
        rgb = _apply_orientation(stored, image)
    except UnsupportedMode as error:
        raise BadImage(name, str(error)) from None
    except MemoryError:
        raise BadImage(name, f"not enough memory for {image.width} x {image.height} pixels") from None
    except Exception as error:
        raise BadImage(name, f"truncated or corrupt {image_format} ({_one_line(error)})") from None
    # MPO is a camera's JPEG followed by previews of the same picture
    has_frames = image_format != "MPO" and _has_further_frames(image)
    notes = ["has several frames, the first is used"] if has_frames else []
    if uniform := uniform_part(stored):
        notes.append(f"{uniform}; {LOST_END}")
    return LoadedImage(rgb, tuple(notes))


def _read_whole(file: BinaryIO, start: int) -> bytes:
    """The file from `start` on. Raises OSError if it is longer than any image of `MAX_PIXELS`."""
    if file.seek(0, os.SEEK_END) - start > MAX_BYTES:
        raise OSError(f"over {MAX_BYTES / 1e6:g} MB")
    file.seek(start)
    return file.read()


class _PixelBudget:
    """Limits the images that the threads of a process decode at a time to this many pixels in all, or to one image."""

    def __init__(self, pixels: int):
        self._pixels = pixels
        self.reset()

    def reset(self) -> None:
        self._used, self._changed = 0, threading.Condition()

    @contextlib.contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Hold a share of the budget; waits until it is free."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._pixels)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


_BUDGET = _PixelBudget(MAX_PIXELS)
if hasattr(os, "register_at_fork"):  # a process that is forked has none of the threads that hold shares
    os.register_at_fork(after_in_child=_BUDGET.reset)


def _is_incomplete_jpeg(file: BinaryIO, start: int, image: Image.Image) -> bool:
    """Whether a JPEG that decoded without an error lacks part of its image.

    libjpeg fills pixels without data with mid-grey and reports it only as a warning, which Pillow ignores.
    Two such files are common: downloads that were cut and then closed with an end marker, and downloads into
    a file that was allocated full of zeros. (A progressive JPEG that is cut late only lacks sharpness.)
    """
    file.seek(-16, os.SEEK_END)
    ends_in_zeros = not any(file.read(16))
    last = image.getpixel((image.width - 1, image.height - 1))
    bands = last if isinstance(last, tuple) else (last,)
    if not ends_in_zeros and any(band not in (127, 128) for band in bands):
        return False
    file.seek(start)
    data = file.read()
    scan = _first_scan_offset(data)
    end = data.find(b"\xff\xd9", scan)
    if end < 0:
        return ends_in_zeros
    # if the scan's own data is appended, a complete image stays the same and a cut one changes
    extra = re.split(rb"\xff[^\x00]", data[scan:end], maxsplit=1)[0]
    extended = Image.open(io.BytesIO(data[:end] + extra + data[end:]), formats=("JPEG",))
    return extended.tobytes() != image.tobytes()


def _first_scan_offset(data: bytes) -> int:
    """Offset of a JPEG's compressed data, after the header of its first scan (ITU T.81, annex B)."""
    offset = 2
    while data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker == 0xFF:  # fill byte
            offset += 1
            continue
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        if marker == 0xDA:
            break
    return offset


def _has_further_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame doesn't affect the first
        return True


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_REFUSED_FORMATS = (
    (0, b"%!PS", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "PSD"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"icns", "ICNS"),
    (0, b"PK\x03\x04", "ZIP"),
)


_PRINTABLE = bytes((*b"\t\n\r", *range(32, 127), *range(128, 256)))


def format_problem(head: bytes) -> str | None:
    """The reason if a file that begins with `head` is certainly in none of `FORMATS`, else None."""
    if not head:
        return "not an image (empty file)"
    for offset, magic, name in _REFUSED_FORMATS:
        if head[offset : offset + len(magic)] == magic:
            return f"format not allowed ({name}); convert it to PNG or JPEG"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in text and text.startswith((b"<?xml", b"<svg", b"<!--", b"<!doctype svg")):
        return "format not allowed (SVG); convert it to PNG or JPEG"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "not an image (looks like HTML)"
    if text.startswith((b"<?xml", b"<!--")):
        return "not an image (looks like XML)"
    if head[:1] != b"P" and not head.strip(b"\0"):
        return "not an image (only zero bytes)"
    if not head.translate(None, _PRINTABLE) and not _may_be_image(head):
        return "not an image (looks like text)"
    return None


def _may_be_image(head: bytes) -> bool:
    """Whether `head` starts like one of the image formats whose first kilobyte may be entirely printable."""
    return (
        head[:3] == b"\xff\xd8\xff"
        or head[:3] == b"GIF"
        or head[:2] == b"BM"
        or (head[:1] == b"P" and head[1:2] in b"123456fy")
    )


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation (EXIF 2.3, tag 0x0112) -> the transposition that makes the image upright."""


def _apply_orientation(rgb: Image.Image, image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        orientation = 1  # damaged EXIF doesn't make the pixels unusable
    method = _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None
    return rgb if method is None else rgb.transpose(method)
