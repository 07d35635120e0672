"""Listing of image folders, names outside the root, and random splits."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from captioning.datasets import (
    CocoConfig,
    load,
)
from captioning.datasets.disk import ImageFolder
from captioning.datasets.splits import random_splits
from captioning.errors import UserError
from tests.helpers.datasets import (
    coco_annotation,
    coco_image,
    coco_json,
    touch,
    write_coco,
    write_json_file,
)


def test_random_splits_depend_only_on_names_and_seed() -> None:
    names = [f"{n}.jpg" for n in range(101)]
    drawn = random_splits(names, seed=3, val=7, test=13)
    shuffled = random.Random(0).sample(names, len(names))
    assert random_splits(shuffled, seed=3, val=7, test=13) == drawn
    assert sorted(drawn.values()) == ["test"] * 13 + ["train"] * 81 + ["val"] * 7
    # a missing image moves at most the one beside each boundary
    fewer = random_splits(names[1:], seed=3, val=7, test=13)
    assert sum(fewer[name] != drawn[name] for name in names[1:]) <= 2
    # frozen: a change here would change everybody's splits
    assert [
        name for name in names if random_splits(names, seed=0, val=2, test=2)[name] == "test"
    ] == TEST_IMAGES


TEST_IMAGES = ["46.jpg", "67.jpg"]  # by sha256sum of "0:0.jpg" ... "0:100.jpg", sorted


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/etc/passwd"])
def test_names_outside_the_root_are_refused(tmp_path: Path, name: str) -> None:
    images = [coco_image(1), {"id": 2, "file_name": name}]
    write_json_file(
        tmp_path / "annotations/captions_train2017.json", coco_json(images, [coco_annotation(1, 2, "a")])
    )
    touch(tmp_path / "train2017", "000000000001.jpg")
    for folder in ("auto", None):
        with pytest.raises(UserError, match=r"images entry 1: .* points outside the data root"):
            load(CocoConfig(root=str(tmp_path), val=None, images=folder))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("b.jpg", "no such image file"),
        ("A.JPG", "no such image file, only with other capital letters: a.jpg"),
        ("a.jpeg", "no such image file, only with another extension: a.jpg"),
        ("sub\\b.jpg", "no such image file, its path has backslashes; write / between folders"),
        ("images/a.jpg", "no such image file, only without the leading images/"),
        ("sub/a.jpg", "no such image file"),
    ],
)
def test_why_an_image_is_missing(tmp_path: Path, name: str, reason: str) -> None:
    touch(tmp_path / "images", "a.jpg", "sub/b.jpg")
    images = ImageFolder(str(tmp_path / "images"))
    path = images.path(name, entry="")
    assert images.missing(path) and images.why_missing(path) == reason
    assert not images.missing(images.path("sub/b.jpg", entry=""))


def test_folders_are_listed_once_and_images_are_not_opened(tmp_path: Path, monkeypatch: Any) -> None:
    write_coco(write_coco(tmp_path, images=211), split="val", first=1000, images=101)
    listed: list[str] = []
    looked: list[str] = []
    scandir, stat = os.scandir, os.stat

    def scan(path: str) -> Any:
        listed.append(str(path))
        return scandir(path)

    def look(path: Any, **options: Any) -> os.stat_result:
        looked.append(str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(os, "stat", look)
    assert len(load(CocoConfig(root=str(tmp_path))).records) == 312
    assert listed == [str(tmp_path / "train2017"), str(tmp_path / "val2017")]
    assert not any(path.endswith(".jpg") for path in looked)
