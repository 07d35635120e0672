"""Files of small data sets for tests."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from captioning.records import Collection


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def write_file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_json_file(path: Path, value: Any) -> Path:
    return write_file(path, json.dumps(value))


def splits_and_captions(collection: Collection) -> dict[Any, tuple[str, tuple[str, ...]]]:
    return {record.image_id: (record.split, record.captions) for record in collection.records}


def skipped_rows(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def coco_json(images: list[Any], annotations: list[Any]) -> dict[str, Any]:
    return {"info": {}, "images": images, "annotations": annotations, "licenses": []}


def coco_image(number: int) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number:012d}.jpg"}


def coco_annotation(number: int, image_id: int, caption: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "caption": caption}


def write_coco(root: Path, *, split: str = "train", first: int = 1, images: int = 3) -> Path:
    """A COCO split of `images` images, with 2 captions each, in the official layout."""
    numbers = range(first, first + images)
    entries = [coco_annotation(10 * n + k, n, f"caption {k} of {n}\n") for k in range(2) for n in numbers]
    write_json_file(
        root / f"annotations/captions_{split}2017.json", coco_json([coco_image(n) for n in numbers], entries)
    )
    touch(root / f"{split}2017", *(f"{n:012d}.jpg" for n in numbers))
    return root
