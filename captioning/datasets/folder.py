"""One's own photographs with a CSV or JSONL of captions -> records. Knows columns, no public data set.

A row: `file_name, caption[, split]`. An image with several captions has several rows, or in JSONL a list of
strings as its `caption`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from captioning.datasets import checks, disk
from captioning.datasets.checks import Entry, MaxBad
from captioning.errors import UserError
from captioning.records import Collection, Skip
from captioning.utils.files import read_jsonl

IMAGE_FOLDERS = ("images", ".")
CAPTION_FILES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Photographs under `root` and a file of captions beside them.

    `captions` left at null is looked for (captions.csv, captions.jsonl, metadata.csv, metadata.jsonl);
    `images` left at "auto" is `root/images`, or `root` itself; `images: null` loads captions alone. Images
    whose rows name no split get `split`: a split's name, or "random" for a tenth each to val and test, drawn
    by `split_seed`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: Literal["folder"] = "folder"
    root: str = "data/folder"
    images: str | None = disk.AUTO
    captions: str | None = None
    split: str = RANDOM
    split_seed: int = 0
    max_bad: MaxBad = 0.01


def read(config: FolderConfig) -> Collection:
    """Records of the folder; image ids are file names as the rows have them.

    Raises:
        UserError: a file is missing or broken, a column is missing, or an image is in two splits.
    """
    disk.need_root(config.root, "folder")
    images = disk.ImageFolder(disk.find_images(config.root, config.images, IMAGE_FOLDERS))
    path = _caption_file(config)
    rows = _jsonl_rows(path) if path.endswith((".jsonl", ".ndjson")) else _csv_rows(path)
    captions: dict[str, list[tuple[str, object]]] = {}
    splits: dict[str, dict[str, None]] = {}
    first_line: dict[str, int] = {}
    skipped: list[Skip] = []
    for number, name, found, split in rows:
        label = f"{path}: line {number}"
        if not (isinstance(name, str) and name.strip()):
            skipped.append(Skip(label, "no file_name"))
            continue
        if split is not None and not isinstance(split, str):
            raise UserError(f"{label}: split must be a name such as train, val or test, found {split!r}")
        first_line.setdefault(name, number)
        several = found if isinstance(found, list) else [found]
        captions.setdefault(name, []).extend((label, caption) for caption in several)
        if split and split.strip():
            splits.setdefault(name, {})[split.strip()] = None
    drawn = _unnamed_splits(config, [name for name in captions if name not in splits])
    entries = [
        Entry(name, name, split, found, f"{path}: line {first_line[name]}")
        for name, found in captions.items()
        for split in splits.get(name, [drawn.get(name, "")])  # two of them are leakage, which `check` refuses
    ]
    collection = checks.gather(entries, images)
    return Collection(collection.records, skipped + collection.skipped)


def _caption_file(config: FolderConfig) -> str:
    if config.captions is not None:
        return os.path.join(config.root, config.captions)
    path = disk.find_file(config.root, CAPTION_FILES)
    if path is None:
        raise UserError(
            f"{config.root}: no file of captions there (looked for {', '.join(CAPTION_FILES)}); "
            "write one with the columns file_name,caption,split, or name yours as `captions`"
        )
    return path


def _unnamed_splits(config: FolderConfig, names: list[str]) -> dict[str, str]:
    if config.split != RANDOM:
        return dict.fromkeys(names, config.split)
    held_out = len(names) // 10
    return disk.random_splits(names, seed=config.split_seed, val=held_out, test=held_out)


def _csv_rows(path: str) -> Iterator[tuple[int, Any, Any, Any]]:
    """Line number, file name, caption and split of each row; what a short row lacks is None."""
    rows = disk.read_csv(path)
    _, header = next(rows, (1, []))
    columns = {field.strip().lower(): place for place, field in enumerate(header)}
    _need_columns(path, columns)
    for number, row in rows:
        if len(row) > len(header):
            raise UserError(
                f"{path}: line {number} has {len(row)} columns, its header {len(header)}; "
                "put captions that have commas in double quotes"
            )
        values = dict(zip(columns, row, strict=False))
        yield number, values.get("file_name"), values.get("caption"), values.get("split")


def _jsonl_rows(path: str) -> Iterator[tuple[int, Any, Any, Any]]:
    for number, value in read_jsonl(path):
        if not isinstance(value, dict):
            raise UserError(
                f"{path}: line {number}: expected an object with file_name and caption, "
                f"found {type(value).__name__}"
            )
        if "file_name" not in value:
            _need_columns(f"{path}: line {number}", value)
        yield number, value["file_name"], value.get("caption"), value.get("split")


def _need_columns(where: str, columns: dict[str, Any]) -> None:
    absent = [name for name in ("file_name", "caption") if name not in columns]
    if absent:
        raise UserError(
            f"{where}: {' and '.join(absent)} missing (found {', '.join(list(columns)[:8]) or 'nothing'}); "
            "rename the columns to file_name,caption and, if there is one, split"
        )
