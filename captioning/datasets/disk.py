"""Find a data set's files and list its images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from captioning.errors import UserError
from captioning.utils.files import safe_join

AUTO = "auto"
"""Value of a config's `images`: search for the folder under its usual names."""


def find_file(root: str, names: Sequence[str], *, folders: Sequence[str] = ("",)) -> str | None:
    """Path of the first of `names` that is a file in one of `root`'s `folders`, or None."""
    candidates = (os.path.normpath(os.path.join(root, folder, name)) for name in names for folder in folders)
    return next((path for path in candidates if os.path.isfile(path)), None)


def find_caption_file(
    root: str,
    configured: str | None,
    names: Sequence[str],
    *,
    folders: Sequence[str] = ("",),
    advice: str,
) -> str:
    """Path of the caption file: `configured` under `root`, or the first of `names` that exists.

    Raises:
        UserError: none of `names` exists; the message ends with `advice`.
    """
    if configured is not None:
        return os.path.join(root, configured)
    path = find_file(root, names, folders=folders)
    if path is None:
        raise UserError(f"{root}: no caption file found (looked for {', '.join(names)}); {advice}")
    return path


def find_image_folder(root: str, images: str | None, names: Sequence[str]) -> str | None:
    """The folder of images: `images` under `root`, or for "auto" the first of `names` that exists.

    None (captions without images) stays None.

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
    raise no_images(root, [name + "/" for name in candidates])


def no_images(root: str, candidates: Iterable[str]) -> UserError:
    """The error for a missing image folder, which names the `candidates` that were tried."""
    return UserError(
        f"{root}: no image folder found (looked for {', '.join(candidates)}); "
        "set `images` to its name, or to null to load captions alone"
    )


def require_root(root: str, kind: str) -> None:
    """Raise UserError if the data set's folder is missing."""
    if not os.path.isdir(root):
        raise UserError(
            f"{root}: no such folder; set `root`, or run `captioning prepare {kind} --needs` "
            "to see which files belong in it"
        )


class ImageFolder:
    """Tells which images exist by listing each folder once, without opening any image.

    With `folder=None` there are no images: paths are bare names, and every file counts as present.
    """

    def __init__(self, folder: str | None) -> None:
        self.folder = folder
        self._listings: dict[str, set[str]] = {}
        self._stems: dict[str, dict[str, str]] = {}

    def path(self, name: str, *, entry: str) -> str:
        """Path of the image `name`.

        Raises:
            UserError: `name` is absolute or leads out of the folder; `entry` says where it was read.
        """
        if os.path.isabs(name) or ".." in name:  # the full check would take most of the loading time
            safe_join(self.folder or os.curdir, name, entry=entry)
        return os.path.normpath(name if self.folder is None else f"{self.folder}/{name}")

    def missing(self, path: str) -> bool:
        """Whether no file (or only a broken link) exists at `path`, a result of the method `path`."""
        folder, name = os.path.split(path)
        return self.folder is not None and name not in self._listing(folder)

    def _listing(self, folder: str) -> set[str]:
        if folder not in self._listings:
            self._listings[folder] = list_files(folder or os.curdir)
        return self._listings[folder]

    def why_missing(self, path: str) -> str:
        """Why there is no file at `path`, as far as its folder can tell."""
        folder, name = os.path.split(path)
        if "\\" in name:
            return "no such image file, its path has backslashes; write / between folders"
        if self.folder is not None and os.path.basename(self.folder) == os.path.basename(folder):
            parent = os.path.dirname(folder)
            if parent == self.folder and name in self._listing(parent):
                return f"no such image file, only without the leading {os.path.basename(folder)}/"
        if folder not in self._stems:
            self._stems[folder] = {_stem(present): present for present in sorted(self._listing(folder))}
        near = self._stems[folder].get(_stem(name))
        if near is None:
            return "no such image file"
        if near.lower() == name.lower():
            return f"no such image file, only with other capital letters: {near}"
        return f"no such image file, only with another extension: {near}"


def _stem(name: str) -> str:
    return os.path.splitext(name)[0].lower()


def list_files(folder: str) -> set[str]:
    """Names of the files in a folder, including links to files; empty if the folder doesn't exist.

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


def json_type(value: object) -> str:
    """JSON's name for the type of `value`, with its article: "an object", "a list" ..."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
