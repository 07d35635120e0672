"""What a user names on a command line -> image files. Opens none of them; no torch."""

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
"""What is taken from a folder. A file that is named itself may have any name."""


@dataclass(frozen=True)
class Found:
    """A file to be opened, by its path as the user would write it.

    image_id: the file's name, or for those found in a folder the path below it; where two files share that,
        the path. Always valid Unicode: bytes of a name that are not UTF-8 are escaped.
    problem: why there is nothing to open, or "".
    """

    path: str
    image_id: str
    problem: str = ""


def find_images(arguments: Iterable[str]) -> list[Found]:
    """The files that the arguments mean, each once, in their order.

    An argument is a file, a folder (all images below it, hidden ones left out, in natural order: img2 before
    img10), "-", or, where no file has that name, a pattern as `glob` takes it. What means nothing is in the
    list with its problem.
    """
    files: dict[str, Found] = {}
    for found in (each for argument in arguments for each in _find(argument)):
        files.setdefault(STDIN if found.path == STDIN else os.path.abspath(found.path), found)
    times = Counter(found.image_id for found in files.values())
    return [
        found if times[found.image_id] == 1 else replace(found, image_id=_unicode(found.path))
        for found in files.values()
    ]


def natural(name: str) -> list[tuple[int, int | str]]:
    """A sorting key by which the numbers in a name count as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def _find(argument: str) -> Iterator[Found]:
    if argument == STDIN:
        yield Found(STDIN, STDIN)
    elif os.path.isdir(argument):
        yield from _below(argument)
    elif os.path.lexists(argument) or not glob.has_magic(argument):
        yield Found(argument, _unicode(os.path.basename(argument)))  # its loader says what is wrong with it
    else:
        matches = sorted(glob.glob(os.path.expanduser(argument), recursive=True), key=natural)
        # "**" also names the folders on the way, whose files it names as well
        deep = "**" in argument
        for match in matches:
            if not os.path.isdir(match):
                yield Found(match, _unicode(os.path.basename(match)))
            elif not deep:
                yield from _below(match)
        if not matches:
            yield Found(argument, _unicode(argument), "no file matches this pattern")


def _below(folder: str) -> Iterator[Found]:
    names: list[str] = []
    closed: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=closed.append):
        folders[:] = [name for name in folders if not name.startswith(".")]  # `walk` enters those left
        images = [name for name in files if os.path.splitext(name)[1].lower() in SUFFIXES]
        names += [os.path.relpath(os.path.join(place, name), folder) for name in images if name[0] != "."]
    for name in sorted(names, key=natural):
        yield Found(os.path.join(folder, name), _unicode(name))
    for error in closed:
        yield Found(
            str(error.filename), _unicode(str(error.filename)), f"cannot be listed ({error.strerror})"
        )
    if not names and not closed:
        yield Found(folder, _unicode(folder), "no images in this folder")


def _unicode(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def shipped_configs() -> Path:
    """The folder of the configs that come with the package: `configs/` of a checkout, or the installed copy."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "configs"
    return checkout if checkout.is_dir() else package / "configs"
