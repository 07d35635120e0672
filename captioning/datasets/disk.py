"""Finds a data set's files and says which photographs are there. Knows names and folders, no captions."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence

from captioning.errors import UserError
from captioning.utils.files import inside, read_text

AUTO = "auto"
"""Value of a config's `images`: look for the folder under the names in use."""


def find_file(root: str, names: Sequence[str], *, folders: Sequence[str] = ("",)) -> str | None:
    """Path of the first of `names` that is a file in one of `root`'s `folders`, or None."""
    candidates = (os.path.normpath(os.path.join(root, folder, name)) for name in names for folder in folders)
    return next((path for path in candidates if os.path.isfile(path)), None)


def find_images(root: str, images: str | None, names: Sequence[str]) -> str | None:
    """The folder of photographs: `images` under `root`, or for "auto" the first of `names` that is there.

    None (no photographs wanted, annotations only) stays None.

    Raises:
        UserError: the folder, or every one of `names`, is missing.
    """
    if images is None:
        return None
    candidates = names if images == AUTO else (images,)
    for name in candidates:
        path = os.path.normpath(os.path.join(root, name))
        if os.path.isdir(path):
            return path
    tried = ", ".join(name + "/" for name in candidates)
    raise UserError(
        f"{root}: no folder of photographs there (looked for {tried}); "
        "set `images`, to null where only captions are wanted"
    )


def need_root(root: str, kind: str) -> None:
    """Raises UserError where the data set's folder is missing."""
    if not os.path.isdir(root):
        raise UserError(
            f"{root}: no such folder; `captioning prepare {kind}` says what belongs there, `root` where to look"
        )


class ImageFolder:
    """Which photographs are there, by listing each folder once and opening none of them.

    With `folder=None` there are no photographs: a path is then the bare name, and every file counts as there.
    """

    def __init__(self, folder: str | None) -> None:
        self.folder = folder
        self._listed: dict[str, set[str]] = {}

    def path(self, name: str, *, entry: str) -> str:
        """Where `name` lies.

        Raises:
            UserError: "entry N points outside the data root" for absolute names and those with `..` too many.
        """
        if os.path.isabs(name) or ".." in name:  # the careful look costs more than all the rest of loading
            inside(self.folder or os.curdir, name, entry=entry)
        return os.path.normpath(name if self.folder is None else f"{self.folder}/{name}")

    def missing(self, path: str) -> bool:
        """Whether there is no file (or only a broken link) at `path`, as `path` returned it."""
        if self.folder is None:
            return False
        folder, _, name = path.rpartition("/")
        if folder not in self._listed:
            self._listed[folder] = list_files(folder or os.curdir)
        return name not in self._listed[folder]


def list_files(folder: str) -> set[str]:
    """Names of the files in a folder, links to files among them; empty where there is no such folder.

    Raises:
        UserError: the folder may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from None


def json_kind(value: object) -> str:
    """What JSON calls the type of `value`: "an object", "a list" ..., for messages."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def read_csv(path: str, *, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Line numbers (of a row's last line, from 1) and fields of a CSV file, header included, blank rows not.

    Raises:
        UserError: as `read_text`, or a quote is left open or stands in the wrong place (with the line).
    """
    reader = csv.reader(io.StringIO(read_text(path), newline="\n"), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}: broken CSV at line {reader.line_num}: {error}; check its quotes") from None


def random_splits(names: Iterable[str], *, seed: int, val: int, test: int) -> dict[str, str]:
    """A split for each name, drawn from its hash: the same on every machine, whatever the order of names.

    `val` and `test` are numbers of images; all others are "train".
    """

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()

    ranked = sorted(set(names), key=rank)
    return {
        name: "test" if number < test else "val" if number < test + val else "train"
        for number, name in enumerate(ranked)
    }
