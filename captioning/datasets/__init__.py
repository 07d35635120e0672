"""Data sets: files on disk -> checked records of images and captions, without torch and without decoding images.

A data set is one file with a config that extends `BaseDatasetConfig` (its files' guide, and how to load them), and one
name in `DatasetConfig`.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from typing import Annotated

from captioning.datasets.base import BaseDatasetConfig
from captioning.datasets.checks import check
from captioning.datasets.coco import CocoConfig
from captioning.datasets.flickr8k import Flickr8kConfig
from captioning.datasets.flickr30k import Flickr30kConfig
from captioning.datasets.folder import FolderConfig
from captioning.datasets.karpathy import KarpathyConfig
from captioning.datasets.shapes import ShapesConfig
from captioning.datasets.shards import ShardsConfig
from captioning.errors import UserError
from captioning.records import Collection, ImageRecord
from captioning.utils.validation import ByKind, members

DatasetConfig = Annotated[
    ShapesConfig
    | Flickr8kConfig
    | Flickr30kConfig
    | KarpathyConfig
    | CocoConfig
    | FolderConfig
    | ShardsConfig,
    ByKind(BaseDatasetConfig),
]

DATASETS: dict[str, type[BaseDatasetConfig]] = members(DatasetConfig)
"""Kind -> config class, in the order of the union."""


def load(config: BaseDatasetConfig, *, skipped_csv: str | os.PathLike[str] | None = None) -> Collection:
    """The data set's records after the common checks; skipped items are written to `skipped_csv`, if given.

    Raises:
        UserError: as the data set's `load` and `checks.check`.
    """
    with without_gc():
        collection = config.load()
    return check(
        collection,
        where=config.root,
        max_bad=config.max_bad,
        skipped_csv=None if skipped_csv is None else os.fspath(skipped_csv),
    )


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Disable the search for reference cycles, which would take half the time of reading a large JSON file."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def of_split(collection: Collection, split: str) -> list[ImageRecord]:
    """The records of one split.

    Raises:
        UserError: there are none; the message lists the splits and their sizes.
    """
    records = [record for record in collection.records if record.split == split]
    if not records:
        raise UserError(f"no images in the split {split!r}; there are {describe_splits(collection.records)}")
    return records


def describe_splits(records: list[ImageRecord]) -> str:
    """The splits with their sizes: "train (6,000 images), val (1,000 images)"."""
    names = [record.split for record in records]
    return ", ".join(f"{name} ({names.count(name):,} images)" for name in sort_splits(set(names)))


def sort_splits(splits: set[str]) -> list[str]:
    """Split names with train, val and test first, the others in alphabetical order."""
    usual = ("train", "val", "test")
    return sorted(splits, key=lambda split: (usual.index(split) if split in usual else len(usual), split))
