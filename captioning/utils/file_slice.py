"""Files that lie within a larger one, and a path that names each. Knows bytes, neither archives nor images.

`shards/train-000001.tar@1536+20481+9ab3f001/000000012.jpg`: of that file the 20,481 bytes from byte 1,536 on, whose
CRC-32 is 9ab3f001. What names an ordinary file goes on to do so.
"""

from __future__ import annotations

import os
import re
import zlib
from typing import NamedTuple

from captioning.errors import UserError

_PATH = re.compile(r"(.+)@(\d+)\+(\d+)\+([0-9a-f]{8})/([^/]+)", re.DOTALL)


class FileSlice(NamedTuple):
    """`size` bytes of the file `container`, from `offset` on; `crc` is their CRC-32."""

    container: str
    offset: int
    size: int
    crc: int
    name: str

    @property
    def path(self) -> str:
        return f"{self.container}@{self.offset}+{self.size}+{self.crc:08x}/{self.name}"

    @classmethod
    def of(cls, path: str) -> FileSlice | None:
        """What `path` names, or None where it names an ordinary file."""
        found = _PATH.fullmatch(path) if "@" in path else None
        if found is None:
            return None
        container, offset, size, crc, name = found.groups()
        return cls(container, int(offset), int(size), int(crc, 16), name)


def read_bytes(path: str) -> bytes:
    """The content of a file, or of a part of one. Nothing stays open, so processes may fork at any time.

    Raises:
        UserError: the part is cut, or its bytes are not those that were stored.
        OSError: the file cannot be read.
    """
    member = FileSlice.of(path)
    if member is None:
        with open(path, "rb") as file:
            return file.read()
    descriptor = os.open(member.container, os.O_RDONLY)
    try:
        if member.offset + member.size > os.fstat(descriptor).st_size:
            raise UserError(f"{path}: {member.container} is cut; copy it again")
        content = os.pread(descriptor, member.size, member.offset)
    finally:
        os.close(descriptor)
    if zlib.crc32(content) != member.crc:
        raise UserError(f"{path}: {member.container} is damaged (CRC-32); copy it again")
    return content


def size_of(path: str) -> int:
    """Bytes of a file, or of a part of one. Raises OSError where there is no such file."""
    member = FileSlice.of(path)
    return os.path.getsize(path) if member is None else member.size
