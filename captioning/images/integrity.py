"""Checks that an image file is whole: what the format itself can tell, and a note where only the picture can."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

CHECKED_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")
"""Formats in which `find_damage` finds something to check; files of others need not be read for it."""

MAX_SCANS = 100
"""Scans of a JPEG. Encoders write about ten; a file with thousands costs minutes to decode."""

MIN_UNIFORM = 0.1
"""Share of the rows from which a part of one colour is worth a note."""

_FILLED_END = 32  # bytes
_BLOCK_PIXELS = 1 << 16


def find_damage(data: bytes, kind: str) -> str | None:
    """Why `data`, the bytes of an image file of format `kind` (Pillow's name), is not a whole picture; None if it is.

    JPEG and MPO: every component has all its scans (ITU T.81, annex G). PNG: the checksums of the chunks that decide
    the pixels, and as much pixel data as the header announces (PNG specification, sections 5 and 7). WebP: the lengths
    in the headers. Other formats have nothing to check.
    """
    if kind in ("JPEG", "MPO"):
        return _jpeg_problem(data)
    if kind == "PNG":
        return _png_problem(data)
    if kind == "WEBP":
        return _webp_problem(data)
    return None


class _Chunk(NamedTuple):
    name: bytes
    start: int  # of the whole chunk
    data: bytes | memoryview
    intact: bool  # its checksum is right

    @property
    def end(self) -> int:
        return self.start + 12 + len(self.data)


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """The chunks of a PNG file up to IEND; the last one may be cut."""
    view, at = memoryview(data), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name, body = data[at + 4 : at + 8], view[at + 8 : at + 8 + length]
        checksum = view[at + 8 + length : at + 12 + length]
        intact = len(checksum) == 4 and zlib.crc32(view[at + 4 : at + 8 + length]) == int.from_bytes(
            checksum, "big"
        )
        yield _Chunk(name, at, body, intact)
        if name == b"IEND" or not intact:
            return
        at += 12 + length


_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"acTL", b"IEND")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png_size(head: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG file from its first bytes; None for another file."""
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR" or len(head) < 24:
        return None
    return struct.unpack_from(">II", head, 16)


def without_metadata(data: bytes) -> bytes:
    """A PNG file's bytes with the chunks that decide its pixels and its orientation alone.

    Pillow refuses files whose text or colour profile unpacks to more than it allows.
    """
    kept = [data[chunk.start : chunk.end] for chunk in _chunks(data) if chunk.name in _PIXEL_CHUNKS]
    return data[:8] + b"".join(kept)


def _png_problem(data: bytes) -> str | None:
    chunks = [chunk for chunk in _chunks(data) if chunk.name in _PIXEL_CHUNKS or not chunk.intact]
    if not chunks or chunks[0].name != b"IHDR" or len(chunks[0].data) != 13:
        return "damaged header"
    if not chunks[-1].intact:
        return "a checksum is wrong"
    if chunks[-1].name != b"IEND":
        return "the data ends before the picture does"
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0].data)
    expected = _png_size(width, height, depth * _CHANNELS.get(colour, 0), bool(interlaced))
    inflate, size = zlib.decompressobj(), 0
    try:
        for chunk in chunks:
            rest = bytes(chunk.data) if chunk.name == b"IDAT" else b""
            while rest and not inflate.eof and size <= expected:
                size += len(inflate.decompress(rest, 1 << 16))
                rest = inflate.unconsumed_tail
    except zlib.error as error:
        return f"damaged pixel data ({error})"
    return "the data ends before the picture does" if size < expected else None


def _png_size(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Bytes of pixel data: each row has a filter byte and its pixels, padded to whole bytes."""

    def rows(columns: int, lines: int) -> int:
        return lines * (1 + (columns * bits + 7) // 8) if columns else 0

    if not interlaced:
        return rows(width, height)
    sizes = [(len(range(x, width, dx)), len(range(y, height, dy))) for x, y, dx, dy in _ADAM7]
    return sum(rows(columns, lines) for columns, lines in sizes)


def _webp_problem(data: bytes) -> str | None:
    (length,) = struct.unpack_from("<I", data, 4)
    if len(data) < length + 8:
        return "the data ends before the picture does"
    at, end = 12, length + 8
    while at + 8 <= end:
        (size,) = struct.unpack_from("<I", data, at + 4)
        if at + 8 + size > len(data):
            return "the data ends before the picture does"
        at += 8 + size + size % 2
    return None


_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg_problem(data: bytes) -> str | None:
    """Walk through the markers of the first picture; frames, scans and the end (ITU T.81, annex B and G)."""
    at, scans, progressive = 2, 0, False
    remaining: dict[int, np.ndarray] = {}  # component: bits of each coefficient that no scan has given
    while match := _MARKER.search(data, at):
        marker, at = match[1][0], match.end()
        if marker == 0xD9:
            break
        if marker == 0x01:
            continue
        body = data[at + 2 : at + int.from_bytes(data[at : at + 2], "big")]
        at += 2 + len(body)
        if marker in _SOF and len(body) >= 6:
            progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
            components = body[6 : 6 + 3 * body[5] : 3]
            remaining = {component: np.full(64, 14 if progressive else 1) for component in components}
        elif marker == 0xDA and body:
            scans += 1
            if scans > MAX_SCANS:
                return f"over {MAX_SCANS} scans"
            _note_scan(body, remaining, progressive)
    if any(bits.any() for bits in remaining.values()):
        return "the data ends before the picture does"
    return None


def _note_scan(header: bytes, remaining: dict[int, np.ndarray], progressive: bool) -> None:
    count = header[0]
    if len(header) < 1 + 2 * count + 3:
        return
    first, last, bits = header[-3], header[-2], header[-1] & 15
    for component in header[1 : 1 + 2 * count : 2]:
        if component in remaining:
            given = remaining[component][first : last + 1] if progressive else remaining[component]
            np.minimum(given, bits if progressive else 0, out=given)


def uniform_part(image: Image.Image) -> str:
    """Which part of an RGB image has one colour: "lower 40 % is one colour", "upper ..."; "" if under `MIN_UNIFORM`.

    A file whose end was lost may look so, and so may a complete picture. An image of one colour altogether gives "".
    """
    for name, from_end in (("lower", True), ("upper", False)):
        count = _uniform_rows(image, from_end=from_end)
        if MIN_UNIFORM * image.height <= count < image.height:
            return f"{name} {100 * count // image.height} % is one colour"
    return ""


def lost_its_end(data: bytes, kind: str, image: Image.Image) -> bool:
    """Whether a file of format `kind` ends in filling and the RGB `image` in it does not end in one colour.

    A WebP that was allocated and not filled ends so. So does one of a single colour, which is sound.
    """
    filled = kind == "WEBP" and data.endswith((bytes(_FILLED_END), b"\xff" * _FILLED_END))
    return filled and _uniform_rows(image, from_end=True) < MIN_UNIFORM * image.height


def _uniform_rows(image: Image.Image, *, from_end: bool) -> int:
    """How many of the first rows, or of the last ones, have one colour, up to 2 of 255."""
    low, high, count = np.full(3, 255), np.zeros(3), 0
    for row in _rows(image, from_end=from_end):
        low, high = np.minimum(low, row.min(0)), np.maximum(high, row.max(0))
        if (high - low).max() > 2:
            return count
        count += 1
    return count


def _rows(image: Image.Image, *, from_end: bool) -> Iterator[np.ndarray]:
    """The rows (width, 3) of an RGB image, converted a few at a time: usually the first one decides."""
    step = max(1, _BLOCK_PIXELS // image.width)
    tops = range(0, image.height, step)
    for top in reversed(tops) if from_end else tops:
        rows = np.asarray(image.crop((0, top, image.width, min(top + step, image.height))))
        yield from rows[::-1] if from_end else rows
