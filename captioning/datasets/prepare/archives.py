"""Unpacks zip and tar archives that may be hostile. Knows archives, no data sets and no network.

Every entry is judged before the first byte is written: names outside the folder, links, devices, names that
occur twice, encryption and more content than allowed stop it.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import secrets
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from captioning.errors import UserError
from captioning.utils.files import inside

CHUNK = 1 << 20
MOST_ENTRIES = 1_000_000
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


class FileSlice(NamedTuple):
    """A file in an archive: its place in the list, its name, its bytes when unpacked, and how to open it."""

    number: int
    name: str
    size: int
    open: Callable[[], IO[bytes]]


def unpack(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    most_bytes: int,
    wanted: Callable[[str], bool] = lambda name: True,
) -> int:
    """Unpack the `wanted` files of a zip or tar under `folder`; gives how many there are.

    Files that are there with the right size are left alone, so an interrupted run goes on. `most_bytes`
    is what the files may take together.

    Raises:
        UserError: not an archive, damaged, hostile (see above), or the disk is full. A hostile one writes
        nothing.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with _opened(archive) as members:
            kept = _judge(archive, folder, members, most_bytes=most_bytes, wanted=wanted)
            _need_room(archive, folder, kept)
            total = sum(member.size for member, _ in kept)
            with tqdm(
                total=total, desc=f"unpacking {archive.name}", unit="B", unit_scale=True, disable=None
            ) as bar:
                for member, target in kept:
                    _write(archive, member, target)
                    bar.update(member.size)
    except DAMAGED as error:
        raise UserError(f"{archive}: damaged archive ({error}); delete it and fetch it again") from None
    except OSError as error:
        raise UserError(f"{archive}: cannot be unpacked to {folder} ({error.strerror or error})") from None
    return len(kept)


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[Iterator[FileSlice]]:
    if not archive.is_file():
        raise UserError(f"{archive}: no such file")
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield _zip_members(archive, opened)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            yield _tar_members(archive, tar)
    else:
        raise UserError(f"{archive}: neither a zip nor a tar archive; delete it and fetch it again")


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[FileSlice]:
    for number, info in enumerate(opened.infolist(), 1):
        where = f"{archive}: entry {number}"
        inside(".", info.filename, entry=where)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            _refuse_kind(where, info.filename, is_link=kind == stat.S_IFLNK)
        if info.flag_bits & 1:
            raise UserError(f"{where}: {info.filename!r} is encrypted, which no public data set is")
        if not info.is_dir():
            yield FileSlice(number, info.filename, info.file_size, lambda info=info: opened.open(info))  # type: ignore[misc]


def _tar_members(archive: Path, tar: tarfile.TarFile) -> Iterator[FileSlice]:
    for number, info in enumerate(tar, 1):
        where = f"{archive}: entry {number}"
        inside(".", info.name, entry=where)
        if not (info.isfile() or info.isdir()):
            _refuse_kind(where, info.name, is_link=info.issym() or info.islnk())
        if info.isfile():
            yield FileSlice(number, info.name, info.size, lambda info=info: tar.extractfile(info))  # type: ignore


def _refuse_kind(where: str, name: str, *, is_link: bool) -> None:
    if is_link:
        raise UserError(f"{where}: {name!r} is a link, and a link points outside the data root as it likes")
    raise UserError(f"{where}: {name!r} is a device or a pipe, not a file")


def _judge(
    archive: Path,
    folder: Path,
    members: Iterator[FileSlice],
    *,
    most_bytes: int,
    wanted: Callable[[str], bool],
) -> list[tuple[FileSlice, Path]]:
    """The wanted members and where they go, all entries having been looked at."""
    kept: list[tuple[FileSlice, Path]] = []
    total = 0
    targets: set[Path] = set()
    for count, member in enumerate(members, 1):
        where = f"{archive}: entry {member.number}"
        total += member.size
        if total > most_bytes or count > MOST_ENTRIES:
            raise UserError(
                f"{where}: unpacks to more than {most_bytes:,} bytes or {MOST_ENTRIES:,} files; "
                "not the archive it should be"
            )
        if not wanted(member.name):
            continue
        target = inside(folder, member.name, entry=where)
        if target in targets:
            raise UserError(f"{where}: {member.name!r} occurs twice; not the archive it should be")
        targets.add(target)
        kept.append((member, target))
    return kept


def _need_room(archive: Path, folder: Path, kept: list[tuple[FileSlice, Path]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(member.size for member, target in kept if not _is_there(member, target))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{archive}: unpacks to {needed:,} bytes, {free:,} free in {folder}; make room")


def _is_there(member: FileSlice, target: Path) -> bool:
    return target.is_file() and target.stat().st_size == member.size


def _write(archive: Path, member: FileSlice, target: Path) -> None:
    if _is_there(member, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with member.open() as content, open(part, "xb") as file:
            left = member.size  # a header that lies about its size gets no more than it said
            while left > 0 and (chunk := content.read(min(CHUNK, left))):
                file.write(chunk)
                left -= len(chunk)
            if left or content.read(1):
                raise UserError(
                    f"{archive}: entry {member.number} has not the {member.size:,} bytes it claims"
                )
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
