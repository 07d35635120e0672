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

from captioning.datasets import checks
from captioning.datasets.base import BaseDatasetConfig
from captioning.datasets.coco import CocoConfig
from captioning.datasets.flickr8k import Flickr8kConfig
from captioning.datasets.flickr30k import Flickr30kConfig
from captioning.datasets.folder import FolderConfig
from captioning.datasets.karpathy import KarpathyConfig
from captioning.datasets.shapes import ShapesConfig
from captioning.datasets.shards import ShardsConfig
from captioning.datasets.splits import describe_splits, draw_validation, usual_name
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

    If there is no split val, a part of train becomes it (see `splits.draw_validation`).

    Raises:
        UserError: as the data set's `load` and `checks.check`.
    """
    with without_gc():
        collection = config.load()
    records, skipped = checks.check(
        collection,
        where=config.root,
        max_bad=config.max_bad,
        skipped_csv=None if skipped_csv is None else os.fspath(skipped_csv),
    )
    return Collection(draw_validation(records, seed=config.split_seed, where=config.root), skipped)


def refuse_equal_files(config: BaseDatasetConfig, collection: Collection) -> None:
    """Raise UserError if the data set's images of different splits have the same bytes (see `checks`)."""
    if not config.generates_files and config.has_images(collection.records):
        checks.refuse_equal_files(collection.records, where=config.root)


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
    """The records of one split, under its own or its usual name ("dev" for val).

    Raises:
        UserError: there are none; the message lists the splits and their sizes.
    """
    for name in (split, usual_name(split)):
        if records := [record for record in collection.records if record.split == name]:
            return records
    raise UserError(f"no images in the split {split!r}; there are {describe_splits(collection.records)}")
