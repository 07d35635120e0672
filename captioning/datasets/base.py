"""`BaseDatasetConfig`, which every data set's config extends, and the guide that describes the files it needs."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple
from urllib.parse import unquote, urlsplit

from pydantic import ConfigDict, Field

from captioning.errors import UserError
from captioning.records import Collection, ImageRecord
from captioning.utils.files import unify_line_ends

UNSPLIT = "all"
"""The split of the records of a caption file that names no splits."""

HEAD_BYTES = 1 << 16
"""Bytes at the start of a caption file from which its format is recognised."""

GB = 10**9


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file on a web server; `size` in bytes and `sha256` in hex where they are published."""

    url: str
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.url).path).rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Download:
    """An archive that may be downloaded.

    Attributes:
        content: what the archive contributes, for people.
        max_bytes: limit on the size of all its entries together, unpacked.
        prefix, suffix: only entries whose names start and end with these are unpacked.
        folder: where they are unpacked, below the data set's root.
    """

    file: RemoteFile
    content: str
    max_bytes: int
    prefix: str = ""
    suffix: str = ""
    folder: str = "."

    def matches(self, name: str) -> bool:
        """Whether the archive's entry `name` is unpacked."""
        return name.startswith(self.prefix) and name.endswith(self.suffix)


@dataclass(frozen=True, kw_only=True)
class Guide:
    """Instructions for a data set, printed by `captioning prepare`.

    Attributes:
        layout: the files that the data set's folder must contain.
        source: where to get them.
        licence: the terms of use.
        downloads: archives for `--download NAME`.
        image_counts: published number of images of each split.
    """

    title: str
    layout: str
    source: str
    licence: str
    downloads: Mapping[str, Download] = field(default_factory=dict)
    image_counts: Mapping[str, int] = field(default_factory=dict)

    def text(self, root: str) -> str:
        """The guide as printed text, with `root` as the data set's folder."""
        lines = [self.title, "", f"Files in {root}/:", *_indent(self.layout)]
        lines += ["", "Where to get them:", *_indent(self.source), "", "Licence:", *_indent(self.licence)]
        if self.downloads:
            lines += ["", "Can be downloaded:"]
            lines += [
                f"  --download {name:<9} {(download.file.size or 0) / GB:6.2f} GB  {download.content}"
                for name, download in self.downloads.items()
            ]
        return "\n".join(lines)


def _indent(text: str) -> list[str]:
    return [f"  {line}" for line in text.split("\n")]


class CaptionFile(NamedTuple):
    """A file of captions whose format is not yet known: its path and the start of its text."""

    path: str
    head: str

    @classmethod
    def open(cls, path: str) -> CaptionFile:
        """Read the start of the file. Raises UserError where it cannot be read."""
        if os.path.isdir(path):
            raise UserError(f"{path}: is a folder; name the file of captions in it")
        try:
            with open(path, "rb") as file:
                return cls(path, unify_line_ends(file.read(HEAD_BYTES).decode("utf-8-sig", "replace")))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None

    @property
    def root(self) -> str:
        return os.path.dirname(self.path) or os.curdir

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def is_json_lines(self) -> bool:
        return self.path.lower().endswith((".jsonl", ".ndjson"))

    @property
    def is_json(self) -> bool:
        return not self.is_json_lines and self.head.lstrip()[:1] in ("{", "[")

    @property
    def first_line(self) -> str:
        return self.head.partition("\n")[0]

    @property
    def columns(self) -> list[str]:
        """The fields of the first line, as those of a CSV header in lower case, whatever separates them."""
        return [column.strip().strip('"').lower() for column in re.split("[,;\t]", self.first_line)]


@dataclass(frozen=True, kw_only=True)
class BaseDatasetConfig(ABC):
    """Settings of a data set, and the methods that read it.

    A data set is a frozen dataclass that extends this class with a literal `kind`, a default `root`, a `guide`, and
    the method `load`.

    Attributes:
        root: the data set's folder.
        max_bad: largest share of images and captions that may be skipped.
        split_seed: seed of splits that are drawn at random because the files name none.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: str
    root: str
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.01
    split_seed: Annotated[int, Field(ge=0)] = 0

    guide: ClassVar[Guide]
    reference_formats: ClassVar[str] = ""
    """The caption files that `read_references` accepts, for error messages."""
    generates_files: ClassVar[bool] = False
    """Whether `load` creates the files itself, so that an empty folder is no error."""

    @abstractmethod
    def load(self) -> Collection:
        """Read the records and the skipped items; `datasets.load` adds the checks common to all data sets.

        Raises:
            UserError: a file is missing or broken.
        """

    def verify(self) -> None:  # noqa: B027 -- most data sets have no checksums
        """Compare the files with stored checksums, if there are any. Raises UserError if they differ."""

    def has_images(self, records: Sequence[ImageRecord]) -> bool:
        """Whether the paths of `records` are image files, which can be opened."""
        return getattr(self, "images", "") is not None

    @property
    def has_training_split(self) -> bool:
        """Whether the settings ask for a training split; COCO's `train: null` does not."""
        return getattr(self, "train", "") is not None

    images_verified: ClassVar[bool] = False
    """Whether all images were decoded when the data set was written, so that training need not check them."""

    def stored_features(self) -> Mapping[str, Any] | None:
        """Of a data set of features instead of images: their `views` per image and `provenance`; else None."""
        return None

    def with_caption_length(self, words: int) -> BaseDatasetConfig:
        """The same data set with captions of exactly that many words. Raises UserError if it cannot be had."""
        raise UserError(
            f"dataset.kind {self.kind}: the captions have their own lengths; use the data set shapes"
        )

    def published_counts(self, records: Sequence[ImageRecord]) -> Mapping[str, int]:
        """The number of images of each split in the literature; empty where none is published."""
        return self.guide.image_counts

    @classmethod
    def read_references(cls, file: CaptionFile) -> Collection | None:
        """Read one of this data set's caption files without images, or None where it has another format.

        Where the file names no splits, the records' split is `UNSPLIT`.

        Raises:
            UserError: the file has this format but is broken.
        """
        return None
