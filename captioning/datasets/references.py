"""Reference captions of one split, read from a caption file of any data set, without images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from captioning.datasets import DATASETS, of_split, without_gc
from captioning.datasets.base import UNSPLIT, CaptionFile
from captioning.datasets.checks import check
from captioning.datasets.splits import describe_splits
from captioning.errors import UserError
from captioning.records import Collection, ImageId, ImageRecord, Skip

_Caption = TypeVar("_Caption")

MAX_BAD = 0.01
"""Default of the largest share of images and captions of a file that may be unusable."""


class References(NamedTuple):
    """The records of one split, the split's name, and what was skipped in the whole file."""

    records: list[ImageRecord]
    split: str
    skipped: list[Skip]

    def captions(self) -> dict[ImageId, Sequence[str]]:
        return {record.image_id: record.captions for record in self.records}


def read_references(
    path: str, *, split: str | None = None, max_bad: float = MAX_BAD, skipped_csv: str | None = None
) -> References:
    """The captions of one split, in any format that a data set reads; formats are recognised by their content.

    Args:
        split: may be None if the file has one split. A file without splits (COCO's, or a token file without
            lists beside it) is one split, under any name.
        max_bad: largest share of the file's images and captions that may be unusable.
        skipped_csv: file to list those in.

    Raises:
        UserError: the format is unknown or broken, there is no such split, or too much is unusable.
    """
    collection = _read(CaptionFile.open(path), max_bad, skipped_csv)
    names = {record.split for record in collection.records}
    if names == {UNSPLIT}:
        default = os.path.basename(path).split(".")[0]
        return References(collection.records, split or default, collection.skipped)
    if split is None and len(names) > 1:
        raise UserError(
            f"{path}: contains {describe_splits(collection.records)}; choose one of them with --split"
        )
    chosen = split or names.pop()
    return References(of_split(collection, chosen), chosen, collection.skipped)


def _read(file: CaptionFile, max_bad: float, skipped_csv: str | None) -> Collection:
    """The file's records, from the first data set that recognises its format."""
    for dataset in DATASETS.values():
        with without_gc():
            collection = dataset.read_references(file)
        if collection is not None:
            return check(collection, where=file.path, max_bad=max_bad, skipped_csv=skipped_csv)
    formats = [dataset.reference_formats for dataset in DATASETS.values() if dataset.reference_formats]
    raise UserError(
        f"{file.path}: unknown format of reference captions; use {', '.join(formats[:-1])}, or {formats[-1]}"
    )


def match_ids(
    predictions: Sequence[tuple[ImageId, _Caption]], records: Sequence[ImageRecord]
) -> tuple[list[tuple[ImageId, _Caption]], str]:
    """The predictions with the records' image ids, and the key they were matched by, such as "file name".

    Other systems may identify an image by its file where the references have numbers, or write numbers as text.
    The first key that matches any prediction is used for all; predictions without a match keep their id.
    """
    keys: dict[str, Mapping[ImageId, ImageId]] = {
        "image id": {record.image_id: record.image_id for record in records},
        "file name": {os.path.basename(record.path): record.image_id for record in records},
        "image id as text": {str(record.image_id): record.image_id for record in records},
    }
    for key, ids in keys.items():
        if any(image_id in ids for image_id, _ in predictions):
            return [(ids.get(image_id, image_id), caption) for image_id, caption in predictions], key
    return list(predictions), "image id"
