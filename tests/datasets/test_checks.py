"""Checks of captions, images and splits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from captioning.datasets import (
    CocoConfig,
    FolderConfig,
    checks,
    load,
    of_split,
)
from captioning.datasets.checks import caption_problem, missing_images, refuse_bad_split
from captioning.errors import UserError
from captioning.records import ImageRecord
from captioning.utils.file_slice import FileSlice, read_bytes
from tests.helpers.datasets import (
    coco_annotation,
    coco_image,
    coco_json,
    skipped_rows,
    touch,
    write_coco,
    write_file,
    write_json_file,
)

LIST_AS_TEXT = (
    "caption is a list written as text; write one caption a row, or its words with spaces between them"
)
BAD_CAPTIONS = [
    ("missing", "caption is missing"),
    (None, "caption is null"),
    ("", "caption is empty"),
    (" \t\n", "caption is empty"),
    (" ... !", "caption has no words, only punctuation"),
    ("¡¿…“”?!", "caption has no words, only punctuation"),
    (17, "caption is not a string (int)"),
    (["a dog"], "caption is not a string (list)"),
    (["a", "dog"], "caption is a list of words; join them with spaces"),
    (["Straßenüberquerung", "am", "Fluß"], "caption is a list of words; join them with spaces"),
    (["一只", "狗"], "caption is a list of words; join them with spaces"),
    (["一只狗在草地上跑", "狗"], "caption is not a string (list)"),
    ("['a', 'dog']", LIST_AS_TEXT),
    ('["a dog", "two dogs"]', LIST_AS_TEXT),
    ({"raw": "a dog"}, "caption is not a string (dict)"),
    (True, "caption is not a string (bool)"),
    ("a dog \ud83d", "caption is not valid Unicode (half of a surrogate pair)"),
]


def test_bad_captions_are_skipped_and_listed(tmp_path: Path) -> None:
    """Two images, a thousand good captions, and one of each kind of bad caption on the first image."""
    entries = [coco_annotation(n, 1 + n % 2, f"good {n}") for n in range(1000)]
    entries += [coco_annotation(5000 + n, 1, caption) for n, (caption, _) in enumerate(BAD_CAPTIONS)]
    del entries[1000]["caption"]
    path = write_json_file(
        tmp_path / "annotations/captions_train2017.json", coco_json([coco_image(1), coco_image(2)], entries)
    )
    config = CocoConfig(root=str(tmp_path), val=None, images=None, max_bad=0.02)
    collection = load(config, skipped_csv=tmp_path / "out" / "skipped.csv")
    assert [len(record.captions) for record in collection.records] == [500, 500]
    expected = [[f"{path}: annotation {5000 + n}", reason] for n, (_, reason) in enumerate(BAD_CAPTIONS)]
    assert skipped_rows(tmp_path / "out" / "skipped.csv") == [["item", "reason"], *expected]
    assert [[*skip] for skip in collection.skipped] == [[*row, "train", False] for row in expected]
    with pytest.raises(UserError, match=r"17 of 1019 images and captions are bad, more than max_bad = 0\.01"):
        load(CocoConfig(root=str(tmp_path), val=None, images=None))


def test_captions_in_many_scripts_are_usable() -> None:
    for caption in (
        "a",
        "7",
        "Ein Hund.",
        "一只狗",
        "कुत्ता",
        "كلب",
        "\x00a",
        "a\u2028b",
        "🐕 dog",
        "x" * 60_000,
    ):
        assert caption_problem(caption) is None
    assert caption_problem("🐕") == "caption has no words, only punctuation"


def test_images_without_captions_and_captions_without_images_are_skipped(tmp_path: Path) -> None:
    content = coco_json(
        [coco_image(1), coco_image(2), coco_image(3)],
        [coco_annotation(4, 1, "a"), coco_annotation(5, 9, "b"), coco_annotation(6, 3, "c")],
    )
    path = write_json_file(tmp_path / "annotations/captions_train2017.json", content)
    touch(tmp_path / "train2017", "000000000001.jpg", "000000000002.jpg")
    os.symlink("nowhere", tmp_path / "train2017" / "000000000003.jpg")  # a broken link is no file
    collection = load(CocoConfig(root=str(tmp_path), val=None, max_bad=0.9))
    folder = tmp_path / "train2017"
    assert [skip.item for skip in collection.skipped if skip.is_image] == [str(folder / "000000000003.jpg")]
    assert missing_images(collection, "train") == 1 and missing_images(collection, "val") == 0
    assert sorted((skip.item, skip.reason) for skip in collection.skipped) == sorted(
        [
            (f"{path}: annotation 5", "caption without image: image 9 is not in the file"),
            (f"{folder / '000000000002.jpg'}", "image without captions"),
            (f"{folder / '000000000003.jpg'}", "no such image file"),
            (f"{path}: annotation 6", f"caption without image: {folder / '000000000003.jpg'}"),
        ]
    )
    with pytest.raises(
        UserError, match=r"4 of 6 images and captions are bad, .*: 2 caption without image \(first"
    ):
        load(CocoConfig(root=str(tmp_path), val=None, max_bad=0.5))
    assert not (tmp_path / "skipped.csv").exists()  # the working folder, where nobody asked for a list


def test_all_images_missing(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for path in (tmp_path / "train2017").iterdir():
        path.unlink()
    with pytest.raises(
        UserError, match=r"9 of 9 .*: 3 no such image file \(first .*train2017/000000000001\.jpg\)"
    ):
        load(CocoConfig(root=str(tmp_path), val=None))


def test_image_in_two_files_is_leakage(tmp_path: Path) -> None:
    write_coco(write_coco(tmp_path, images=5), split="val", first=4, images=3)
    with pytest.raises(UserError, match=r"leakage: 2 images are in two splits by id \(first \[4, 5\]"):
        load(CocoConfig(root=str(tmp_path)))
    write_json_file(
        tmp_path / "annotations/captions_val2017.json",
        coco_json([{"id": 99, "file_name": "000000000002.jpg"}], [coco_annotation(1, 99, "a")]),
    )
    with pytest.raises(UserError, match=r"leakage: 1 images are in two splits by file .*000000000002\.jpg"):
        load(CocoConfig(root=str(tmp_path), images="train2017"))


def test_equal_files_in_two_splits_are_leakage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only files of equal size in different splits are read, and a file that is gone is no leakage."""
    contents = {"a": b"aaaa", "b": b"bbbb", "c": b"cc", "d": b"cc", "e": b"aaa", "f": b"bbbc"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    def records(**splits: str) -> list[ImageRecord]:
        return [ImageRecord(name, str(tmp_path / name), ("x",), split) for name, split in splits.items()]

    read: list[str] = []
    monkeypatch.setattr(checks, "read_bytes", lambda path: read.append(Path(path).name) or read_bytes(path))
    checks.refuse_equal_files(
        records(a="train", b="train", c="train", d="train", e="val", f="val", g="val"), where="x"
    )
    assert read == ["a", "b", "f"]
    with pytest.raises(
        UserError, match=r"x: leakage: 1 images .* by content \(first .*c \(train\) = .*d \(val\)\)"
    ):
        checks.refuse_equal_files(records(a="train", b="train", c="train", d="val", e="val"), where="x")
    tar = [
        ImageRecord(name, FileSlice(str(tmp_path / "none.tar"), 9, 4, crc, name).path, ("x",), split)
        for name, crc, split in (("1", 5, "train"), ("2", 6, "val"))
    ]
    checks.refuse_equal_files(tar, where="x")  # another CRC-32: not read


def test_max_bad_holds_for_each_split(tmp_path: Path) -> None:
    """Of 100 test images 8 are missing: 1 % of all 6,000 images and captions, but 8 % of the split's."""
    lines = ["file_name,caption,split"]
    for split, count in (("train", 900), ("testing", 100)):  # read as test
        names = [f"{split}{number}.jpg" for number in range(count)]
        lines += [f"{name},caption {number},{split}" for name in names for number in range(5)]
        touch(tmp_path / "images", *names[8 if split == "testing" else 0 :])
    write_file(tmp_path / "captions.csv", "\n".join(lines))
    with pytest.raises(
        UserError,
        match=r"48 of 600 images and captions of the split 'test' are bad, .*: 8 no such image file",
    ):
        load(FolderConfig(root=str(tmp_path)))
    collection = load(FolderConfig(root=str(tmp_path), max_bad=0.08))
    assert missing_images(collection, "test") == 8 and len(of_split(collection, "test")) == 92


def test_unusable_images_are_counted_for_each_split() -> None:
    splits = ["train"] * 97 + ["val"] * 5
    refuse_bad_split({"a": "train", "b": "val"}, splits, max_bad=0.2, where="x")
    with pytest.raises(
        UserError, match=r"^x: 1 of the 5 images of the split 'val' are unusable \(first b\), .* = 0\.19 "
    ):
        refuse_bad_split({"a": "train", "b": "val"}, splits, max_bad=0.19, where="x")


def test_max_bad_counts_images_and_captions(tmp_path: Path) -> None:
    """One bad caption of 99 + 1 is 1 % with its image not counted twice: 1 of 101."""
    write_file(tmp_path / "captions.csv", "file_name,caption\n" + "x.jpg,a\n" * 99 + "x.jpg,!\n")
    config = {"root": str(tmp_path), "images": None, "split": "train"}
    assert len(load(FolderConfig(**config, max_bad=1 / 101)).skipped) == 1  # type: ignore[arg-type]
    with pytest.raises(UserError, match="1 of 101 images and captions are bad"):
        load(FolderConfig(**config, max_bad=1 / 102))  # type: ignore[arg-type]
    with pytest.raises(UserError):
        load(FolderConfig(**config, max_bad=0))  # type: ignore[arg-type]
