"""Small shards for tests."""

from __future__ import annotations

import os
from pathlib import Path

from captioning import datasets
from captioning.datasets.prepare.shards import write
from captioning.datasets.shards import ShardsConfig
from captioning.records import ImageRecord
from captioning.utils.file_slice import read_bytes

IMAGES = {"train": 17, "val": 5, "test": 3}
PER_SHARD = 7


def read_png(record: ImageRecord) -> tuple[str, bytes]:
    return "png", Path(record.path).read_bytes()


def written(records: list[ImageRecord], root: Path, **options) -> list[ImageRecord]:
    write(records, root, read_png, holds={"kind": "images"}, **{"per_shard": PER_SHARD, **options})
    return datasets.load(ShardsConfig(root=str(root))).records


def by_id(records: list[ImageRecord]) -> dict:
    return {record.image_id: (record.captions, record.split, read_bytes(record.path)) for record in records}


class Bomb:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)
