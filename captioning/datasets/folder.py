"""A folder of your own photographs with a CSV or JSON Lines file of captions.

A row has the columns `file_name, caption[, split]`. An image with several captions has several rows, or in JSON
Lines a list of strings as its `caption`. Chinese, Japanese or Thai captions need another `text.tokenizer`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from captioning.datasets import checks, disk
from captioning.datasets.base import UNSPLIT, BaseDatasetConfig, CaptionFile, Guide
from captioning.datasets.checks import Entry, LabelledCaptions
from captioning.datasets.splits import random_splits, sort_splits, usual_names
from captioning.datasets.tables import read_table, require_columns
from captioning.errors import Note, UserError
from captioning.records import Collection, Skip
from captioning.utils.files import read_jsonl

IMAGE_FOLDERS = ("images", ".")
CAPTION_FILES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
COLUMNS = ("file_name", "caption")
RANDOM = "random"

GUIDE = Guide(
    title="a folder of your own photographs",
    layout="""\
images/        the photographs (or the folder itself)
captions.csv   rows of file_name,caption,split; the last column is optional; an image with several captions has
               several rows. Or captions.jsonl: {"file_name": ..., "caption": ..., "split": ...}
Captions without spaces between words (Chinese, Japanese, Thai) are for text.tokenizer=characters.""",
    source="your own images and captions",
    licence="your own",
)


@dataclass(frozen=True, kw_only=True)
class FolderConfig(BaseDatasetConfig):
    """Photographs under `root` and a file of captions beside them.

    `captions: null` searches for captions.csv, captions.jsonl, metadata.csv and metadata.jsonl;
    `images: auto` is `root/images`, or `root` itself; `images: null` loads captions alone. Images
    whose rows name no split get `split`: a split's name, or "random" for a tenth each in val and test (at least one
    in val), drawn by `split_seed`.
    """

    guide: ClassVar[Guide] = GUIDE
    reference_formats: ClassVar[str] = "a CSV or JSONL with file_name and caption"

    kind: Literal["folder"] = "folder"
    root: str = "data/folder"
    images: str | None = disk.AUTO
    captions: str | None = None
    split: str = RANDOM

    def load(self) -> Collection:
        """Records of the folder; image ids are the file names in the rows.

        Raises:
            UserError: a file is missing or broken, a column is missing, or an image is in two splits.
        """
        disk.require_root(self.root, self.kind)
        images = disk.ImageFolder(disk.find_image_folder(self.root, self.images, IMAGE_FOLDERS))
        path = disk.find_caption_file(
            self.root,
            self.captions,
            CAPTION_FILES,
            advice="write one with the columns file_name,caption,split, or name yours as `captions`",
        )
        captions: LabelledCaptions = {}
        splits: dict[str, dict[str, None]] = {}  # a dictionary as an ordered set
        first_line: dict[str, int] = {}
        skipped: list[Skip] = []
        for row in _jsonl_rows(path) if path.endswith((".jsonl", ".ndjson")) else _csv_rows(path):
            label = f"{path}: line {row.line}"
            if not (isinstance(row.file_name, str) and row.file_name.strip()):
                skipped.append(Skip(label, "no file_name"))
                continue
            if row.split is not None and not isinstance(row.split, str):
                raise UserError(
                    f"{label}: split must be a name such as train, val or test, found {row.split!r}"
                )
            name = row.file_name
            first_line.setdefault(name, row.line)
            texts = checks.list_captions(row.caption)
            captions.setdefault(name, []).extend((label, text) for text in texts)
            if row.split and row.split.strip():
                splits.setdefault(name, {})[row.split.strip()] = None
        renamed = usual_names((split for names in splits.values() for split in names), where=path)
        splits = {
            name: dict.fromkeys(renamed.get(split, split) for split in names)
            for name, names in splits.items()
        }
        default = self._default_splits([name for name in captions if name not in splits])
        entries = [
            Entry(name, name, split, texts, f"{path}: line {first_line[name]}")
            for name, texts in captions.items()
            for split in splits.get(name, [default.get(name, "")])  # `check` refuses an image in two splits
        ]
        return checks.build_records(entries, images, skipped)

    def _default_splits(self, names: list[str]) -> dict[str, str]:
        """The splits of images whose rows name none."""
        if self.split != RANDOM:
            return dict.fromkeys(names, self.split)
        size = len(names) // 10
        drawn = random_splits(names, seed=self.split_seed, val=max(size, int(len(names) > 1)), test=size)
        if drawn:
            counts = Counter(drawn.values())
            sizes = ", ".join(f"{counts[split]:,} {split}" for split in sort_splits(set(counts)))
            warnings.warn(
                Note(
                    f"{self.root}: images without a split are divided at random: {sizes} (split_seed {self.split_seed})"
                ),
                stacklevel=2,
            )
        return drawn

    @classmethod
    def read_references(cls, file: CaptionFile) -> Collection | None:
        if not (file.is_json_lines or {"file_name", "caption"} <= set(file.columns)):
            return None
        return cls(root=file.root, images=None, captions=file.name, split=UNSPLIT).load()


class Row(NamedTuple):
    """A row of the caption file, its values unchecked; a missing split is None."""

    line: int
    file_name: Any
    caption: Any
    split: Any


def _csv_rows(path: str) -> Iterator[Row]:
    for line, cells in read_table(path, COLUMNS):
        yield Row(line, cells["file_name"], cells["caption"], cells.get("split"))


def _jsonl_rows(path: str) -> Iterator[Row]:
    for line, value in read_jsonl(path):
        where = f"{path}: line {line}"
        if not isinstance(value, dict):
            raise UserError(
                f"{where}: expected an object with file_name and caption, found {type(value).__name__}"
            )
        if "file_name" not in value:
            require_columns(where, list(value), COLUMNS)
        yield Row(line, value["file_name"], value.get("caption", checks.MISSING), value.get("split"))
