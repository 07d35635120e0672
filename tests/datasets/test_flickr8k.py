"""Flickr8k: both layouts, split lists, and broken files."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from captioning.datasets import (
    Flickr8kConfig,
    load,
    of_split,
)
from captioning.errors import UserError
from captioning.records import ImageRecord
from tests.helpers.datasets import (
    splits_and_captions,
    touch,
    write_file,
)
from tests.helpers.shared_data import SHARED, needs_shared


def write_flickr8k(root: Path, *, images: str = "images", text: str = "", test: bool = True) -> Path:
    """A small Flickr8k: a.jpg and b.jpg train, c.jpg val, d.jpg test, e.jpg and f.jpg.1 in no list."""
    touch(root / images, "a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg.1"]
    lines = [f"{name}#{k}\tA {name[0]} , number {k} ." for name in names for k in range(3)]
    write_file(root / text / "Flickr8k.token.txt", "\n".join(lines) + "\n")
    write_file(root / text / "Flickr_8k.trainImages.txt", "a.jpg\nb.jpg\n")
    write_file(root / text / "Flickr_8k.devImages.txt", "c.jpg\n")
    if test:
        write_file(root / text / "Flickr_8k.testImages.txt", "d.jpg")
    return root


def test_original_layout(tmp_path: Path) -> None:
    collection = load(Flickr8kConfig(root=str(write_flickr8k(tmp_path))))
    assert [(r.image_id, r.split) for r in collection.records] == [
        ("a.jpg", "train"),
        ("b.jpg", "train"),
        ("c.jpg", "val"),
        ("d.jpg", "test"),
    ]
    assert collection.records[1] == ImageRecord(
        "b.jpg",
        str(tmp_path / "images" / "b.jpg"),
        ("A b , number 0 .", "A b , number 1 .", "A b , number 2 ."),
        "train",
    )
    assert collection.skipped == []  # f.jpg.1 and e.jpg are in no list: not part of the data set


def test_layout_of_the_zips_without_the_test_list(tmp_path: Path) -> None:
    write_flickr8k(tmp_path, images="Flicker8k_Dataset", text="Flickr8k_text", test=False)
    collection = load(Flickr8kConfig(root=str(tmp_path)))
    assert [(r.image_id, r.split) for r in collection.records] == [
        ("a.jpg", "train"),
        ("b.jpg", "train"),
        ("c.jpg", "val"),
    ]
    with pytest.raises(UserError, match=r"no images in the split 'test'; there are train \(2 images\), val"):
        of_split(collection, "test")
    assert [record.image_id for record in of_split(collection, "val")] == ["c.jpg"]


def test_csv_gives_the_same_records_as_the_token_file(tmp_path: Path) -> None:
    root = write_flickr8k(tmp_path)
    original = load(Flickr8kConfig(root=str(root)))
    with open(
        root / "captions.txt", "w", newline="", encoding="utf-8-sig"
    ) as file:  # a byte order mark, CRLF
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(["image", "caption"])
        for line in (root / "Flickr8k.token.txt").read_text().splitlines():
            label, caption = line.split("\t")
            writer.writerow([label.split("#")[0], caption])
    assert '"' in (root / "captions.txt").read_text(encoding="utf-8")
    assert load(Flickr8kConfig(root=str(root), captions="captions.txt")) == original
    text = (root / "captions.txt").read_text(encoding="utf-8-sig").replace('"', "")
    write_file(root / "unquoted.txt", text)
    assert load(Flickr8kConfig(root=str(root), captions="unquoted.txt")) == original


def test_missing_lists_and_random_splits(tmp_path: Path) -> None:
    touch(tmp_path / "Images", *(f"{n}.jpg" for n in range(89)))
    write_file(
        tmp_path / "captions.txt", "image,caption\n" + "".join(f"{n}.jpg,caption {n}\n" for n in range(89))
    )
    with pytest.raises(
        UserError, match=r"Flickr_8k\.trainImages.* not found; add .* or set `splits: random`"
    ):
        load(Flickr8kConfig(root=str(tmp_path)))
    config = Flickr8kConfig(root=str(tmp_path), splits="random")
    with pytest.warns(UserWarning, match="do not compare with published"):
        drawn = load(config)
    counts = {name: len(of_split(drawn, name)) for name in ("train", "val", "test")}
    assert counts == {"train": 67, "val": 11, "test": 11}
    with pytest.warns(UserWarning):
        assert load(config) == drawn
        assert splits_and_captions(
            load(Flickr8kConfig(root=str(tmp_path), splits="random", split_seed=1))
        ) != splits_and_captions(drawn)


def test_duplicate_labels_and_names_are_refused(tmp_path: Path) -> None:
    root = write_flickr8k(tmp_path)
    whole = (root / "Flickr8k.token.txt").read_text()
    write_file(root / "Flickr8k.token.txt", whole + "a.jpg#1\tagain\nb.jpg#0\tagain\n")
    with pytest.raises(UserError, match=r"2 caption labels occur twice \(first \['a\.jpg#1', 'b\.jpg#0'\]"):
        load(Flickr8kConfig(root=str(root)))
    write_file(root / "Flickr8k.token.txt", whole)
    write_file(root / "Flickr_8k.devImages.txt", "c.jpg\nc.jpg\n")
    with pytest.raises(UserError, match=r"devImages\.txt: 1 image names occur twice"):
        load(Flickr8kConfig(root=str(root)))


def test_image_in_two_lists_is_leakage(tmp_path: Path) -> None:
    root = write_flickr8k(tmp_path)
    write_file(root / "Flickr_8k.devImages.txt", "c.jpg\nb.jpg\na.jpg\n")
    with pytest.raises(UserError, match=r"leakage: 2 images are in two splits by id .* in train and val"):
        load(Flickr8kConfig(root=str(root)))


def test_empty_list_and_empty_token_file_are_refused(tmp_path: Path) -> None:
    root = write_flickr8k(tmp_path)
    write_file(root / "Flickr_8k.devImages.txt", "\n")
    with pytest.raises(UserError, match=r"devImages\.txt: names no image for the split 'val'"):
        load(Flickr8kConfig(root=str(root)))
    write_file(root / "Flickr8k.token.txt", "")
    with pytest.raises(UserError, match="expected the header image,caption"):
        load(Flickr8kConfig(root=str(root)))


@needs_shared
def test_both_layouts_of_the_real_data() -> None:
    root = SHARED / "flickr8k"
    tokens = load(Flickr8kConfig(root=str(root)))
    pairs = load(Flickr8kConfig(root=str(root), captions="captions.txt"))
    assert tokens == pairs and tokens.skipped == []
    assert len(of_split(tokens, "train")) == 6000 and len(of_split(tokens, "val")) == 1000
    assert all(len(record.captions) == 5 for record in tokens.records)
    assert {Path(r.path).name for r in tokens.records} == set(os.listdir(root / "images"))
