"""Find the image files that command line arguments name, and the configs shipped with the package."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

STDIN = "-"

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
) | frozenset((".ppm", ".pgm", ".pbm", ".pnm"))
"""Extensions of the files that are taken from a folder. Files that are named directly may have any extension."""

REFUSED_SUFFIXES = frozenset((".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".tga"))
"""Extensions of photographs in formats that are not read. They are taken as well, so that each is refused by name."""

TAKEN_SUFFIXES = SUFFIXES | REFUSED_SUFFIXES


@dataclass(frozen=True)
class ImageFile:
    """An image file named by an argument.

    Attributes:
        image_id: the file's name, or its path below the folder that was named; the full path if two files share
            that. Bytes that are not UTF-8 are escaped, so it is valid Unicode.
        problem: why there is no file to open, or "".
    """

    path: str
    image_id: str
    problem: str = ""


def find_images(arguments: Iterable[str]) -> list[ImageFile]:
    """The files that the arguments name, without duplicates, in order.

    An argument is a file, a folder (all images below it except hidden ones, in natural order: img2 before img10; also
    those in formats that are not read), "-" for standard input, or, if no file has that name, a `glob` pattern. An
    argument without files gives an entry with a problem.
    """
    files: dict[str, ImageFile] = {}
    for file in (file for argument in arguments for file in _find(argument)):
        files.setdefault(STDIN if file.path == STDIN else os.path.abspath(file.path), file)
    counts = Counter(file.image_id for file in files.values())
    return [
        file if counts[file.image_id] == 1 else replace(file, image_id=_unicode(file.path))
        for file in files.values()
    ]


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sorting key that compares the numbers in a name by value."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def _find(argument: str) -> Iterator[ImageFile]:
    if argument == STDIN:
        yield ImageFile(STDIN, STDIN)
    elif os.path.isdir(argument):
        yield from _below(argument)
    elif os.path.lexists(argument) or not glob.has_magic(argument):
        yield ImageFile(
            argument, _unicode(os.path.basename(argument))
        )  # if it is missing, opening it gives the error
    else:
        matches = sorted(glob.glob(os.path.expanduser(argument), recursive=True), key=natural_key)
        # "**" matches folders as well as the files in them
        recursive = "**" in argument
        for match in matches:
            if not os.path.isdir(match):
                yield ImageFile(match, _unicode(os.path.basename(match)))
            elif not recursive:
                yield from _below(match)
        if not matches:
            yield ImageFile(argument, _unicode(argument), "no file matches this pattern")


def _below(folder: str) -> Iterator[ImageFile]:
    names: list[str] = []
    errors: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]  # `walk` skips the others
        images = [name for name in files if os.path.splitext(name)[1].lower() in TAKEN_SUFFIXES]
        names += [os.path.relpath(os.path.join(parent, name), folder) for name in images if name[0] != "."]
    for name in sorted(names, key=natural_key):
        yield ImageFile(os.path.join(folder, name), _unicode(name))
    for error in errors:
        yield ImageFile(
            str(error.filename), _unicode(str(error.filename)), f"cannot be listed ({error.strerror})"
        )
    if not names and not errors:
        yield ImageFile(folder, _unicode(folder), "no images in this folder")


def _unicode(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


MAX_NAME_BYTES = 200
"""File systems allow 255, and temporary files add to a name."""


def check_run_name(name: str) -> str:
    """Return `name` if it is a relative path that stays below the folder of runs. Raises ValueError otherwise."""
    parts = name.split("/")
    if set(parts) & {"", ".", ".."} or set(name) & set(
        "\\:"
    ):  # the latter separate folders and drives on Windows
        raise ValueError(
            f"expected a path below the folder of runs, such as lstm or lstm/second, got {name[:80]!r}"
        )
    if not name.isprintable() or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        raise ValueError(f"expected at most {MAX_NAME_BYTES} printable characters, got {name[:80]!r}")
    return name


def shipped_configs() -> Path:
    """The folder of the configs that come with the package: `configs/` of a checkout, or of the installation."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "configs"
    return checkout if checkout.is_dir() else package / "configs"
