"""Shards: webdataset tars of images, or of stored features, read at random positions.

A folder of shards contains `index.json`, the tars, and beside each tar a listing `NAME.jsonl`: one line a record,
with its captions and the position of its image in the tar. The tars are uncompressed, so the position is enough to
read an image at any time. Unlike a stream with a shuffle buffer, this keeps the order of training a function of
(seed, epoch), lets every process read its share, and lets a run resume at the exact batch. The bytes read are
checked against the listing's CRC-32.

`datasets/prepare/shards.py` writes shards, and lists the tars of webdataset or img2dataset.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from typing_extensions import TypedDict

from captioning.datasets import disk
from captioning.datasets.base import BaseDatasetConfig, Guide
from captioning.datasets.checks import caption_problem
from captioning.errors import UserError
from captioning.records import Collection, ImageRecord, Skip
from captioning.utils.file_slice import FileSlice
from captioning.utils.files import read_json, safe_join, sha256
from captioning.utils.parsing import parse_json
from captioning.utils.progress import progress
from captioning.utils.validation import check_shape

FORMAT = 1
INDEX = "index.json"
FEATURE_SUFFIX = ".npy"


class Shard(TypedDict):
    """A shard in the index."""

    file: str
    bytes: int
    sha256: str
    records: dict[str, int]  # by split
    listing: str
    listing_sha256: str
    skipped: list[Skip]


class Holds(TypedDict):
    kind: str


class StoredFeatures(TypedDict):
    """`holds` of shards of features."""

    views: int
    provenance: Provenance


class Provenance(TypedDict):
    """As `loaders.FeatureProvenance`."""

    encoder: dict[str, Any]
    weights: str
    preprocessing: dict[str, Any]


class Index(TypedDict):
    """The contents of `index.json` that are read."""

    format: int
    holds: Holds
    shards: list[Shard]


@dataclass(frozen=True, kw_only=True)
class ShardsConfig(BaseDatasetConfig):
    """Shards under `root` that `captioning prepare shard` has written or listed."""

    guide: ClassVar[Guide] = Guide(
        title="shards: tars of images, or of stored features, with their captions",
        layout="""\
index.json          the shards, their lengths and sha256
train-000000.tar    webdataset tars: KEY.jpg (or KEY.npy) and KEY.json
train-000000.jsonl  a line a record: captions, and the position of its image in the tar""",
        source="""\
`captioning prepare shard KIND --to FOLDER` writes them from any other data set; `captioning prepare shard --adopt
FOLDER` lists existing tars of webdataset or img2dataset.""",
        licence="that of the data set they were written from",
    )

    images_verified: ClassVar[bool] = True

    kind: Literal["shards"] = "shards"
    root: str = "data/shards"

    def load(self) -> Collection:
        """Records of the shards; a record's path is a slice of its tar.

        Raises:
            UserError: the index is missing, unfinished or broken; a tar is missing or has another length; a listing
                is damaged, or has positions outside its tar.
        """
        disk.require_root(self.root, self.kind)
        index = read_index(self.root)
        if not index.get("complete"):
            raise UserError(f"{self.root}: its writing was interrupted; run captioning prepare shard again")
        collection = Collection([], [])
        for shard in index["shards"]:
            _read_listing(self.root, shard, collection)
            collection.skipped.extend(Skip(*skip) for skip in shard["skipped"])
        return collection

    def verify(self) -> None:
        verify(self.root)

    def stored_features(self) -> Mapping[str, Any] | None:
        content = read_index(self.root)["holds"]
        if content["kind"] != "features":
            return None
        return check_shape(
            content, StoredFeatures, where=Path(self.root, INDEX), advice="write the shards again"
        )

    def has_images(self, records: Sequence[ImageRecord]) -> bool:
        return not records[0].path.endswith(FEATURE_SUFFIX)


def read_index(root: str | os.PathLike[str]) -> dict[str, Any]:
    """The folder's `index.json`.

    Raises:
        UserError: it is missing, or not an index of shards.
    """
    path = Path(root, INDEX)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; captioning prepare shard --adopt {root} writes it for existing tars"
        )
    index = read_json(path)
    if isinstance(index, dict) and index.get("format", FORMAT) != FORMAT:
        raise UserError(f"{path}: format {index['format']}, expected {FORMAT}; write the shards again")
    return check_shape(index, Index, where=path, advice="write the shards again")


def _read_listing(root: str, shard: Mapping[str, Any], collection: Collection) -> None:
    """Add the records of one listing to `collection`."""
    tar = safe_join(root, shard["file"], entry=f"{root}/{INDEX}: entry {shard['file']!r}")
    path = safe_join(root, shard["listing"], entry=f"{root}/{INDEX}: entry {shard['listing']!r}")
    if problem := length_problem(tar, shard):
        raise UserError(f"{problem}; copy the shard again")
    if not path.is_file() or sha256(path) != shard["listing_sha256"]:
        raise UserError(
            f"{path}: missing or damaged; copy it again, or run captioning prepare shard --adopt {root}"
        )
    container = os.path.normpath(os.path.join(root, shard["file"]))
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}: line {number}"
            record = _parse_record(line, container, shard["bytes"])
            if record is None:
                raise UserError(
                    f"{where}: not a record of {shard['file']}; run captioning prepare shard --adopt {root}"
                )
            captions = []
            for caption in record.captions:
                if reason := caption_problem(caption):
                    collection.skipped.append(Skip(where, reason, record.split))
                else:
                    captions.append(caption.strip())
            if captions:
                collection.records.append(
                    ImageRecord(record.image_id, record.path, tuple(captions), record.split)
                )
            else:
                collection.skipped.append(Skip(where, "image without captions", record.split))


def _parse_record(line: bytes, container: str, container_size: int) -> ImageRecord | None:
    """The record of a line, its captions unchecked; None if the line is no record of the tar `container`."""
    try:
        entry = parse_json(line.decode("utf-8"), where=container)
        part = FileSlice(container, entry["offset"], entry["size"], int(entry["crc"], 16), entry["name"])
        captions, image_id, split = entry["captions"], entry["id"], entry["split"]
        valid = (
            0 <= part.offset <= part.offset + part.size <= container_size
            and FileSlice.parse(part.path) == part
        )
    except (UserError, ValueError, KeyError, TypeError):
        return None
    if not (valid and isinstance(captions, list) and type(image_id) in (int, str) and type(split) is str):
        return None
    return ImageRecord(image_id, part.path, tuple(captions), split)


def length_problem(tar: Path, shard: Mapping[str, Any]) -> str | None:
    """A description of the problem if the tar is missing or its length is not that of the index, else None."""
    if not tar.is_file():
        return f"{tar}: missing"
    size = tar.stat().st_size
    return None if size == shard["bytes"] else f"{tar}: {size} bytes, expected {shard['bytes']}"


def verify(root: str | os.PathLike[str]) -> None:
    """Read every tar and compare it with the index.

    Raises:
        UserError: tars are damaged; the message names them.
    """
    shards = read_index(root)["shards"]
    damaged = [
        shard["file"]
        for shard in progress(shards, desc="verifying", unit="shard", delay=2.0)
        if length_problem(path := Path(root, shard["file"]), shard) or sha256(path) != shard["sha256"]
    ]
    if damaged:
        raise UserError(
            f"{root}: {len(damaged)} of {len(shards)} shards are damaged ({', '.join(damaged)}); copy these again"
        )
