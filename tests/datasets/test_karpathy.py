"""Karpathy's JSON files with COCO's and Flickr's photographs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from captioning.datasets import (
    KarpathyConfig,
    load,
)
from captioning.errors import UserError
from tests.helpers.datasets import (
    splits_and_captions,
    touch,
    write_json_file,
)


def karpathy_image(number: int, split: str, *, coco_year: str | None = None) -> dict[str, Any]:
    sentences = [
        {"tokens": ["x"], "raw": f"Caption {k} of {number}.", "imgid": number, "sentid": 10 * number + k}
        for k in range(2)
    ]
    name = f"COCO_{coco_year}_{number:012d}.jpg" if coco_year else f"{number}.jpg"
    entry: dict[str, Any] = {"filename": name, "imgid": number, "split": split, "sentences": sentences}
    return {**entry, "filepath": coco_year, "cocoid": number} if coco_year else entry


def write_karpathy(root: Path, *, year: str = "2014") -> Path:
    splits = ["train", "restval", "val", "test", "restval"]
    images = [
        karpathy_image(n, split, coco_year="train2014" if split == "train" else "val2014")
        for n, split in enumerate(splits, 1)
    ]
    write_json_file(root / "caption_datasets" / "dataset_coco.json", {"images": images, "dataset": "coco"})
    if year == "2014":
        touch(root, *(f"{each['filepath']}/{each['filename']}" for each in images))
    else:  # COCO 2017 kept image 3 in val and moved the others to train
        touch(root, *(f"{'val' if n == 3 else 'train'}2017/{n:012d}.jpg" for n in range(1, 6)))
    return root


@pytest.mark.parametrize("base", ["", "images"])
def test_restval_joins_train(tmp_path: Path, base: str) -> None:
    write_karpathy(tmp_path)
    if base:
        (tmp_path / base).mkdir()
        for name in ("train2014", "val2014"):
            os.rename(tmp_path / name, tmp_path / base / name)
    collection = load(KarpathyConfig(root=str(tmp_path)))
    splits = {1: "train", 2: "train", 3: "val", 4: "test", 5: "train"}
    assert splits_and_captions(collection) == {
        n: (splits[n], (f"Caption 0 of {n}.", f"Caption 1 of {n}.")) for n in range(1, 6)
    }
    assert collection.records[2].path == str(tmp_path / base / "val2014" / "COCO_val2014_000000000003.jpg")
    without = load(KarpathyConfig(root=str(tmp_path), restval=False))
    assert [record.image_id for record in without.records] == [1, 3, 4]


def test_photographs_of_2017(tmp_path: Path) -> None:
    write_karpathy(tmp_path, year="2017")
    collection = load(KarpathyConfig(root=str(tmp_path)))
    assert [os.path.relpath(record.path, tmp_path) for record in collection.records] == [
        f"{'val' if n == 3 else 'train'}2017/{n:012d}.jpg" for n in range(1, 6)
    ]


def test_flickr_files(tmp_path: Path) -> None:
    images = [karpathy_image(n, split) for n, split in ((1, "train"), (2, "val"), (3, "test"))]
    write_json_file(tmp_path / "dataset_flickr8k.json", {"images": images, "dataset": "flickr8k"})
    touch(tmp_path / "Flicker8k_Dataset", "1.jpg", "2.jpg", "3.jpg")
    collection = load(KarpathyConfig(root=str(tmp_path)))
    assert [(r.image_id, r.split) for r in collection.records] == [
        ("1.jpg", "train"),
        ("2.jpg", "val"),
        ("3.jpg", "test"),
    ]
    write_json_file(tmp_path / "dataset_flickr30k.json", {"images": images})
    with pytest.raises(UserError, match=r"exist; name one of them as `captions`"):
        load(KarpathyConfig(root=str(tmp_path)))
    assert len(load(KarpathyConfig(root=str(tmp_path), captions="dataset_flickr30k.json")).records) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "found a list at the root"),
        ({"a": 1}, r"found the keys \['a'\]"),
        (
            {"images": [{"id": 1, "file_name": "x"}], "annotations": []},
            "COCO's own annotations: use kind: coco",
        ),
        ({"images": [{"filename": "x", "split": "train", "sentences": [3]}]}, "images entry 0"),
        ({"images": [{"filename": "x", "split": 3, "sentences": []}]}, "images entry 0"),
        ({"images": [karpathy_image(1, "train"), karpathy_image(1, "val")]}, "2 sentence ids occur twice"),
        (
            {"images": [{**karpathy_image(1, "train"), "filename": "../x"}]},
            "images entry 0: .* outside the data root",
        ),
        (
            {"images": [{**karpathy_image(1, "train"), "filepath": "/etc"}]},
            "images entry 0: .* outside the data root",
        ),
    ],
)
def test_other_formats_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    write_json_file(tmp_path / "dataset_coco.json", content)
    with pytest.raises(UserError, match=message):
        load(KarpathyConfig(root=str(tmp_path), images=None))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"none of dataset_coco\.json, .* found; `captioning prepare karpathy"
    ):
        load(KarpathyConfig(root=str(tmp_path)))
    write_karpathy(tmp_path)
    os.rename(tmp_path / "val2014", tmp_path / "else")
    with pytest.raises(UserError, match=r"no image folder found \(looked for val2014/, images/val2014/"):
        load(KarpathyConfig(root=str(tmp_path)))
