"""Unpack zip and tar archives, which may be damaged or hostile.

All entries are checked before the first byte is written: paths outside the folder, links, devices, names that occur
twice, encryption, and more content than allowed are refused.
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

from captioning.errors import UserError
from captioning.utils.files import safe_join
from captioning.utils.progress import progress

CHUNK_BYTES = 1 << 20
MAX_ENTRIES = 1_000_000
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


class Member(NamedTuple):
    """A file in an archive: its entry's number and name, its size when unpacked, and a function that opens it."""

    number: int
    name: str
    size: int
    open: Callable[[], IO[bytes]]


def unpack(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    max_bytes: int,
    wanted: Callable[[str], bool] = lambda name: True,
) -> int:
    """Unpack the `wanted` files of a zip or tar under `folder`, and return their number.

    Files that exist with the right size are kept, so an interrupted run can be continued. `max_bytes` limits
    the size of all files together.

    Raises:
        UserError: the file is not an archive, damaged, or hostile (see above; nothing is written then), or the
            disk is full.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with _open_archive(archive) as members:
            targets = _check_members(archive, folder, members, max_bytes=max_bytes, wanted=wanted)
            _check_disk_space(archive, folder, targets)
            total = sum(member.size for member, _ in targets)
            with progress(
                total=total, desc=f"unpacking {archive.name}", unit="byte", unit_scale=True, delay=2.0
            ) as bar:
                for member, target in targets:
                    _write(archive, member, target)
                    bar.update(member.size)
    except DAMAGED as error:
        raise UserError(f"{archive}: damaged archive ({error}); delete it and download it again") from None
    except OSError as error:
        raise UserError(f"{archive}: cannot be unpacked to {folder} ({error.strerror or error})") from None
    return len(targets)


@contextlib.contextmanager
def _open_archive(archive: Path) -> Iterator[Iterator[Member]]:
    if not archive.is_file():
        raise UserError(f"{archive}: no such file")
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield _zip_members(archive, opened)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            yield _tar_members(archive, tar)
    else:
        raise UserError(f"{archive}: neither a zip nor a tar archive; delete it and download it again")


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[Member]:
    for number, info in enumerate(opened.infolist(), 1):
        where = f"{archive}: entry {number}"
        safe_join(".", info.filename, entry=where)
        file_type = stat.S_IFMT(info.external_attr >> 16)
        if file_type not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _special_file(where, info.filename, is_link=file_type == stat.S_IFLNK)
        if info.flag_bits & 1:
            raise UserError(f"{where}: {info.filename!r} is encrypted; no public data set is")
        if not info.is_dir():
            yield Member(number, info.filename, info.file_size, lambda info=info: opened.open(info))  # type: ignore[misc]


def _tar_members(archive: Path, tar: tarfile.TarFile) -> Iterator[Member]:
    for number, info in enumerate(tar, 1):
        where = f"{archive}: entry {number}"
        safe_join(".", info.name, entry=where)
        if not (info.isfile() or info.isdir()):
            raise _special_file(where, info.name, is_link=info.issym() or info.islnk())
        if info.isfile():
            yield Member(number, info.name, info.size, lambda info=info: tar.extractfile(info))  # type: ignore


def _special_file(where: str, name: str, *, is_link: bool) -> UserError:
    if is_link:
        return UserError(f"{where}: {name!r} is a link, which may point outside the data root")
    return UserError(f"{where}: {name!r} is a device or a pipe, not a file")


def _check_members(
    archive: Path, folder: Path, members: Iterator[Member], *, max_bytes: int, wanted: Callable[[str], bool]
) -> list[tuple[Member, Path]]:
    """The wanted members and their target paths, after all entries were checked."""
    targets: dict[Path, Member] = {}
    total = 0
    for count, member in enumerate(members, 1):
        where = f"{archive}: entry {member.number}"
        total += member.size
        if total > max_bytes or count > MAX_ENTRIES:
            raise UserError(
                f"{where}: unpacks to more than {max_bytes:,} bytes or {MAX_ENTRIES:,} files; "
                "this is not the expected archive"
            )
        if wanted(member.name):
            target = safe_join(folder, member.name, entry=where)
            if target in targets:
                raise UserError(f"{where}: {member.name!r} occurs twice; this is not the expected archive")
            targets[target] = member
    return [(member, target) for target, member in targets.items()]


def _check_disk_space(archive: Path, folder: Path, targets: list[tuple[Member, Path]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(member.size for member, target in targets if not _exists(member, target))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{archive}: unpacks to {needed:,} bytes, {free:,} are free in {folder}; free some disk space"
        )


def _exists(member: Member, target: Path) -> bool:
    return target.is_file() and target.stat().st_size == member.size


def _write(archive: Path, member: Member, target: Path) -> None:
    if _exists(member, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with member.open() as content, open(part, "xb") as file:
            remaining = member.size  # the header may lie: read no more than it states
            while remaining > 0 and (chunk := content.read(min(CHUNK_BYTES, remaining))):
                file.write(chunk)
                remaining -= len(chunk)
            if remaining or content.read(1):
                raise UserError(
                    f"{archive}: entry {member.number} has not the {member.size:,} bytes of its header; "
                    "delete the archive and download it again"
                )
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
