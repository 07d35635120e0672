"""Data sets: what lies on disk -> records that passed the common checks. No torch, no pixels.

A new source is one file with `XConfig` and `read(config) -> Collection`, and one name in `DatasetConfig`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import Annotated

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
from captioning.utils.validation import ByKind

DatasetConfig = Annotated[
    ShapesConfig
    | Flickr8kConfig
    | Flickr30kConfig
    | KarpathyConfig
    | CocoConfig
    | FolderConfig
    | ShardsConfig,
    ByKind(),
]


def load(config: DatasetConfig, *, skipped_csv: str | os.PathLike[str] | None = None) -> Collection:
    """The data set's records, checked, and what was passed over (written to `skipped_csv`, where named).

    Raises:
        UserError: as the source's `read` and `checks.check` do.
    """
    source = sys.modules[type(config).__module__]  # a config's class lives beside its reader
    with _no_cycle_search():
        collection: Collection = source.read(config)
    return check(
        collection,
        where=config.root,
        max_bad=config.max_bad,
        skipped_csv=None if skipped_csv is None else os.fspath(skipped_csv),
    )


@contextlib.contextmanager
def _no_cycle_search() -> Iterator[None]:
    """Python's search for reference cycles is off: it would take half the time of a large JSON file."""
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
        UserError: there are none; the splits that there are, with their sizes, are named.
    """
    records = [record for record in collection.records if record.split == split]
    if not records:
        raise UserError(f"no images in the split {split!r}; there are {describe_splits(collection.records)}")
    return records


def describe_splits(records: list[ImageRecord]) -> str:
    """ "train (6,000 images), val (1,000 images)", in that order."""
    names = [record.split for record in records]
    first = [name for name in ("train", "val", "test") if name in names]
    order = [*first, *sorted(set(names) - set(first))]
    return ", ".join(f"{name} ({names.count(name):,} images)" for name in order)
