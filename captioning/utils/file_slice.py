"""Paths that name a slice of a larger file, such as an image in a tar, and functions that read them.

`shards/train-000001.tar@1536+20481+9ab3f001/000000012.jpg` names the 20,481 bytes from byte 1,536 of that tar, whose
CRC-32 is 9ab3f001. Paths of ordinary files keep their meaning.
"""

from __future__ import annotations

import os
import re
import zlib
from typing import NamedTuple

from captioning.errors import UserError

_PATH = re.compile(r"(.+)@(\d+)\+(\d+)\+([0-9a-f]{8})/([^/]+)", re.DOTALL)


class FileSlice(NamedTuple):
    """`size` bytes of the file `container`, starting at `offset`; `crc` is their CRC-32."""

    container: str
    offset: int
    size: int
    crc: int
    name: str

    @property
    def path(self) -> str:
        return f"{self.container}@{self.offset}+{self.size}+{self.crc:08x}/{self.name}"

    @classmethod
    def parse(cls, path: str) -> FileSlice | None:
        """The slice that `path` names, or None if it is the path of an ordinary file."""
        match = _PATH.fullmatch(path) if "@" in path else None
        if match is None:
            return None
        container, offset, size, crc, name = match.groups()
        return cls(container, int(offset), int(size), int(crc, 16), name)


def read_bytes(path: str) -> bytes:
    """The content of a file or slice. No file is kept open, so that processes may fork at any time.

    Raises:
        UserError: the slice is cut off, or its bytes have another CRC-32.
        OSError: the file cannot be read.
    """
    part = FileSlice.parse(path)
    if part is None:
        with open(path, "rb") as file:
            return file.read()
    with open(part.container, "rb") as file:
        if part.offset + part.size > os.fstat(file.fileno()).st_size:
            raise UserError(f"{path}: {part.container} is cut off; copy it again")
        file.seek(part.offset)
        content = file.read(part.size)
    if zlib.crc32(content) != part.crc:
        raise UserError(f"{path}: {part.container} is damaged (CRC-32); copy it again")
    return content


class FileState(NamedTuple):
    """Values that change with a file's content, and cost no reading."""

    size: int  # bytes
    mtime_ns: int  # 0 for a slice

    @classmethod
    def of(cls, path: str) -> FileState:
        """Raises OSError if there is no such file."""
        if part := FileSlice.parse(path):
            return cls(part.size, 0)
        stat = os.stat(path)
        return cls(stat.st_size, stat.st_mtime_ns)


def content_crc(path: str) -> int:
    """CRC-32 of a file or slice. Raises OSError if a file cannot be read; slices are not read."""
    if part := FileSlice.parse(path):
        return part.crc
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc
