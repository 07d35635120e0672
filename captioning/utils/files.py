"""Reading files that may be broken and writing files that never are half there. Knows nothing of captioning."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from captioning.errors import UserError


def read_text(path: str | os.PathLike[str]) -> str:
    """The file's text, UTF-8 with or without a byte order mark, line ends as `\\n`.

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
    return text.replace("\r\n", "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The file's JSON value.

    Raises:
        UserError: as `read_text`, or the JSON is broken (with line and column).
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except RecursionError:
        raise UserError(f"{path}: JSON nested too deeply to be read") from None


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
    """Line numbers (from 1) and values of a JSON Lines file; blank lines are passed over.

    Raises:
        UserError: as `read_text`, or a line's JSON is broken (with line and column).
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}: broken JSON at line {number}, column {error.colno}: {error.msg}"
            ) from None


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a path beside `path` to write to; on success it takes `path`'s name, on failure it is gone.

    A reader sees the old file or the whole new one, also after a crash or a power cut.
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
def filled_folder(part: Path) -> Iterator[Path]:
    """An empty folder to fill; on success its files are on the disk, on failure it is gone."""
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
def replacing_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives an empty folder beside `folder` to fill; on success it takes its place, on failure it is gone.

    Two renames: a crash between them leaves the former content as `.NAME.old`, which `recovered` puts back.
    """
    folder = Path(folder)
    part, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    recovered(folder)
    with filled_folder(part):
        yield part
    try:
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        fsync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def recovered(folder: Path) -> Path:
    """`folder`, put back from `.NAME.old` where a crash struck between the two renames of a replacement."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def write_manifest(folder: Path) -> None:
    """Write `manifest.json`: the sha256 of every other file in `folder`."""
    write_json(folder / "manifest.json", {path.name: sha256(path) for path in sorted(folder.iterdir())})


def check_manifest(folder: Path) -> None:
    """Raises UserError where a file of `manifest.json` is missing or not as it was written."""
    for name, digest in read_json(folder / "manifest.json").items():
        path = inside(folder, name, entry=f"{folder / 'manifest.json'}: entry {name!r}")
        if not path.is_file():
            raise UserError(f"{path}: missing; copy the whole folder again")
        if sha256(path) != digest:
            raise UserError(f"{path}: damaged or edited (its sha256 is not the manifest's); copy it again")


def fsync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as part:
        part.write_bytes(text.encode("utf-8", "surrogatepass"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as JSON (UTF-8, indented), whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_jsonl(path: str | os.PathLike[str], values: Iterable[Any]) -> None:
    """Write one JSON value a line, whole or not at all."""
    with replacing(path) as part, open(part, "w", encoding="utf-8", newline="\n") as file:
        for value in values:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")


def append_jsonl(path: str | os.PathLike[str], value: Any) -> None:
    """Add one line to a file of JSON lines."""
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """Sixteen hex digits of a JSON-able value, the same whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def inside(root: str | os.PathLike[str], name: str, *, entry: str) -> Path:
    """`root / name`, refused where it would lie outside `root` (`../`, absolute names; links are not followed).

    Raises:
        UserError: "entry N points outside the data root".
    """
    base = os.path.abspath(root)
    path = os.path.normpath(os.path.join(base, name))
    if os.path.isabs(name) or (path != base and not path.startswith(base.rstrip(os.sep) + os.sep)):
        raise UserError(f"{entry}: {name!r} points outside the data root {base}")
    return Path(path)
