"""A file of captions, of any data set -> the references of one split. No photographs, no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from captioning import datasets
from captioning.datasets import checks, disk, flickr8k, flickr30k
from captioning.datasets.checks import Entry
from captioning.datasets.coco import CocoConfig
from captioning.datasets.flickr8k import Captions, Flickr8kConfig
from captioning.datasets.flickr30k import Flickr30kConfig
from captioning.datasets.folder import FolderConfig
from captioning.datasets.karpathy import KarpathyConfig
from captioning.errors import UserError
from captioning.records import Collection, ImageId, ImageRecord, Skip

_Caption = TypeVar("_Caption")

START = 1 << 16
"""Bytes of a file that tell its format."""

UNNAMED = "all"
"""The split of captions that no split is named for."""

FORMATS = (
    "COCO's captions_*.json, one of Karpathy's JSON files, Flickr8k.token.txt or captions.txt, Flickr30k's "
    "results.csv, or a CSV or JSONL with file_name and caption"
)


class References(NamedTuple):
    """The records of one split; `split` is its name, `skipped` what was passed over in the whole file."""

    records: list[ImageRecord]
    split: str
    skipped: list[Skip]

    def captions(self) -> dict[ImageId, Sequence[str]]:
        return {record.image_id: record.captions for record in self.records}


def read_references(path: str, *, split: str | None = None) -> References:
    """The captions of a split, in any of `FORMATS`, told apart by their content.

    Args:
        split: which; may be None where there is one only. A file without splits (COCO's, a token file without
            lists beside it) is one split, whatever it is called.

    Raises:
        UserError: of no known format, as the format's reader does, or there is no such split.
    """
    if os.path.isdir(path):
        raise UserError(f"{path}: a folder; name the file of captions in it")
    collection, parted = _read(path)
    if not parted:
        return References(
            collection.records, split or os.path.basename(path).split(".")[0], collection.skipped
        )
    names = {record.split for record in collection.records}
    if split is None and len(names) > 1:
        there = datasets.describe_splits(collection.records)
        raise UserError(f"{path}: holds {there}; say which with --split")
    chosen = split or names.pop()
    return References(datasets.of_split(collection, chosen), chosen, collection.skipped)


def match_ids(
    predictions: Sequence[tuple[ImageId, _Caption]], records: Sequence[ImageRecord]
) -> tuple[list[tuple[ImageId, _Caption]], str]:
    """The predictions under the records' image ids, and what they were told by: "image id", "file name" ...

    Other systems name an image by its file where the references have numbers, or write numbers as text. The
    first way that fits any prediction is taken for all; a prediction that it does not fit stays as it is.
    """
    ways: dict[str, Mapping[ImageId, ImageId]] = {
        "image id": {record.image_id: record.image_id for record in records},
        "file name": {os.path.basename(record.path): record.image_id for record in records},
        "image id as text": {str(record.image_id): record.image_id for record in records},
    }
    for how, known in ways.items():
        if any(image_id in known for image_id, _ in predictions):
            return [(known.get(image_id, image_id), caption) for image_id, caption in predictions], how
    return list(predictions), "image id"


def _read(path: str) -> tuple[Collection, bool]:
    """The file's records, and whether they are parted into splits."""
    root, name = os.path.split(path)
    root = root or os.curdir
    start = _start(path)
    first = start.partition("\n")[0]
    header = [field.strip().strip('"').lower() for field in first.split(",")]
    lines = path.lower().endswith((".jsonl", ".ndjson"))
    if start.lstrip()[:1] in ("{", "[") and not lines:
        if re.search(r'"sentences"\s*:\s*\[', start):
            return datasets.load(KarpathyConfig(root=root, images=None, captions=name)), True
        return datasets.load(CocoConfig(root=root, images=None, train=None, val=None, test=name)), False
    if lines or {"file_name", "caption"} <= set(header):
        collection = datasets.load(FolderConfig(root=root, images=None, captions=name, split=UNNAMED))
        return collection, any(record.split != UNNAMED for record in collection.records)
    tokens = "\t" in first and "#" in first.partition("\t")[0]
    if tokens or header == ["image", "caption"]:
        if _there(root, flickr8k.LISTS.values(), flickr8k.TEXT_FOLDERS):
            return datasets.load(Flickr8kConfig(root=root, images=None, captions=name)), True
        return _whole(path, flickr8k.read_tokens(path) if tokens else flickr8k.read_pairs(path)), False
    if first.startswith("image_name|"):
        if _there(root, (flickr30k.KARPATHY, *flickr30k.LISTS.values()), flickr30k.TEXT_FOLDERS):
            return datasets.load(Flickr30kConfig(root=root, images=None, captions=name)), True
        return _whole(path, flickr30k.read_piped(path)), False
    raise UserError(f"{path}: no known file of reference captions; read are {FORMATS}")


def _start(path: str) -> str:
    """The first characters of the file, whose whole text its reader will check."""
    try:
        with open(path, "rb") as file:
            return file.read(START).decode("utf-8-sig", "replace").replace("\r\n", "\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _there(root: str, names: Iterable[str], folders: Sequence[str]) -> bool:
    return disk.find_file(root, tuple(names), folders=folders) is not None


def _whole(path: str, found: tuple[Captions, list[Skip]]) -> Collection:
    """All captions of a file that names no split, as one."""
    captions, skipped = found
    entries = (
        Entry(name, name, UNNAMED, texts, f"{path}: image {number}")
        for number, (name, texts) in enumerate(captions.items(), 1)
    )
    collection = checks.gather(entries, disk.ImageFolder(None))
    whole = Collection(collection.records, skipped + collection.skipped)
    return checks.check(whole, where=path, max_bad=FolderConfig().max_bad)
