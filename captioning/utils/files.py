"""Read files that may be broken, and write files and folders atomically."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from captioning.errors import UserError
from captioning.utils.parsing import parse_json


def read_text(path: str | os.PathLike[str]) -> str:
    """The file's text (UTF-8 with or without a byte order mark), with line ends as `\\n`.

    Raises:
        UserError: the file is missing, unreadable, or not UTF-8 (with the byte offset).
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 at byte {error.start}; convert it, for example with iconv"
        ) from None
    return unify_line_ends(text)


def unify_line_ends(text: str) -> str:
    """The text with `\\n` for `\\r\\n`, and for `\\r` if there is no `\\n` (spreadsheets on a Mac write that)."""
    text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")


ARRAY_ERRORS = (
    *(
        OSError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        SyntaxError,
        MemoryError,
        RuntimeError,
        struct.error,
    ),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What `numpy.load` raises on damaged .npy and .npz files."""


def read_json(path: str | os.PathLike[str]) -> Any:
    """The file's JSON value.

    Raises:
        UserError: as `read_text`, or the JSON is broken (with line and column).
    """
    return parse_json(read_text(path), where=str(path), surrogates=True)


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
    """Line numbers (from 1) and values of a JSON Lines file; blank lines are skipped.

    Raises:
        UserError: as `read_text`, or a line's JSON is broken (with line and column).
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        yield number, parse_json(line, where=str(path), line=number, surrogates=True)


def disk_full(error: OSError) -> bool:
    """Whether a write failed for lack of space: of the disk, of a quota, or by a limit on the size of files."""
    names = ("ENOSPC", "EDQUOT", "EFBIG")  # Windows does not have all of them
    return error.errno in [getattr(errno, name, None) for name in names]


def free_space(path: Path) -> str:
    """The free space on the disk of `path`, which need not exist: "12.5 MB"."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return f"{shutil.disk_usage(existing).free / 1e6:.1f} MB"


@contextlib.contextmanager
def explain_full_disk(folder: Path, *, advice: str) -> Iterator[None]:
    """Turn the error of a full disk inside the block into a one-sentence UserError, which ends with `advice`."""
    try:
        yield
    except OSError as error:
        if not disk_full(error):
            raise
        raise UserError(
            f"{folder}: no space ({error.strerror}, {free_space(folder)} free); {advice}"
        ) from None


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write to; it replaces `path` on success and is deleted on failure.

    Readers see the old file or the complete new one, even after a crash or a power cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        fsync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(part: Path) -> Iterator[Path]:
    """An empty folder to fill; its files are synced to disk on success, and it is deleted on failure."""
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for path in part.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        fsync_folder(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty folder to fill; it replaces `folder` on success and is deleted on failure.

    This takes two renames: a crash between them leaves the old content as `.NAME.old`, which `recover_folder`
    restores.
    """
    folder = Path(folder)
    part, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    recover_folder(folder)
    with new_folder(part):
        yield part
    try:
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        fsync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def recover_folder(folder: Path) -> Path:
    """Return `folder`, restored from `.NAME.old` if a crash interrupted `atomic_folder` between its two renames."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def write_manifest(folder: Path) -> None:
    """Write `manifest.json`: the sha256 of every other file in `folder`."""
    write_json(folder / "manifest.json", {path.name: sha256(path) for path in sorted(folder.iterdir())})


def check_manifest(folder: Path, *, needed: Iterable[str]) -> None:
    """Raise UserError if a file of `manifest.json` is missing or was changed, or it lacks one that is `needed`."""
    manifest = folder / "manifest.json"
    digests = read_json(manifest)
    if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
        raise UserError(f"{manifest}: expected file names with their sha256; copy the whole folder again")
    if missing := sorted(set(needed) - set(digests)):
        raise UserError(f"{manifest}: does not list {', '.join(missing)}; copy the whole folder again")
    for name, digest in digests.items():
        path = safe_join(folder, name, entry=f"{manifest}: entry {name!r}")
        if not path.is_file():
            raise UserError(f"{path}: missing; copy the whole folder again")
        if sha256(path) != digest:
            raise UserError(
                f"{path}: damaged or edited (its sha256 differs from the manifest's); copy the folder again"
            )


def fsync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system can open folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_write(path) as part:
        part.write_bytes(text.encode("utf-8", "surrogatepass"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as JSON (UTF-8, indented), atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_jsonl(path: str | os.PathLike[str], values: Iterable[Any]) -> None:
    """Write one JSON value a line, atomically."""
    with atomic_write(path) as part, open(part, "w", encoding="utf-8", newline="\n") as file:
        for value in values:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")


def append_jsonl(path: str | os.PathLike[str], value: Any) -> None:
    """Append one line to a JSON Lines file."""
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """A hash of a JSON value: sixteen hex digits that don't depend on the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def fingerprint_items(items: Iterable[Any]) -> str:
    """A hash of a sequence of JSON values, sixteen hex digits, without holding them in memory."""
    digest = hashlib.sha256()
    for item in items:
        text = json.dumps(item, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:16]


def safe_join(root: str | os.PathLike[str], name: str, *, entry: str) -> Path:
    """`root / name`, if that is inside `root`; links are not followed.

    Raises:
        UserError: `name` is absolute or leads out of `root` by `..`; `entry` says where the name was read.
    """
    base = os.path.abspath(root)
    path = os.path.normpath(os.path.join(base, name))
    if os.path.isabs(name) or (path != base and not path.startswith(base.rstrip(os.sep) + os.sep)):
        raise UserError(f"{entry}: {name!r} points outside the data root {base}")
    return Path(path)
