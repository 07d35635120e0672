"""COCO annotation files: layouts, formats and ids."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from captioning.datasets import (
    CocoConfig,
    load,
)
from captioning.errors import UserError
from tests.helpers.datasets import (
    coco_annotation,
    coco_image,
    coco_json,
    splits_and_captions,
    write_coco,
    write_file,
    write_json_file,
)
from tests.helpers.shared_data import SHARED, needs_shared


def test_layouts_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_coco(write_coco(tmp_path), split="val", first=7, images=2)
    collection = load(CocoConfig(root=str(tmp_path)))
    assert capfd.readouterr() == ("", "")
    assert splits_and_captions(collection) == {
        n: ("train" if n < 7 else "val", (f"caption 0 of {n}", f"caption 1 of {n}")) for n in (1, 2, 3, 7, 8)
    }
    assert collection.records[3].path == str(tmp_path / "val2017" / "000000000007.jpg")
    os.rename(tmp_path / "train2017", tmp_path / "photos")
    write_file(tmp_path / "images" / "val2017" / "x", "")
    only = load(CocoConfig(root=str(tmp_path), val=None, images="photos"))
    assert only.records[0].path == str(tmp_path / "photos" / "000000000001.jpg")
    bare = load(CocoConfig(root=str(tmp_path), images=None))
    assert (
        splits_and_captions(bare) == splits_and_captions(collection)
        and bare.records[0].path == "000000000001.jpg"
    )


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder; .* `captioning prepare coco --needs`"):
        load(CocoConfig(root=str(tmp_path / "none")))
    write_coco(tmp_path)
    with pytest.raises(UserError, match=r"captions_val2017\.json: no such file; add it, or set `val: null`"):
        load(CocoConfig(root=str(tmp_path)))
    with pytest.raises(UserError, match="no annotation file is named"):
        load(CocoConfig(root=str(tmp_path), train=None, val=None))
    os.rename(tmp_path / "train2017", tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"no image folder found \(looked for train2017/, images/"):
        load(CocoConfig(root=str(tmp_path), val=None))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [}', r"broken JSON at line 1, column 13"),
        ('{\n "images": [],\n "annotations": [1 2]}', r"broken JSON at line 3, column 20"),
        ("", r"broken JSON at line 1, column 1"),
        ('[{"image_id": 1, "caption": "x"}]', r"found a list at the root; these look like results"),
        ("[]", r"found a list at the root"),
        ("3", r"found a number at the root"),
        ('{"images": []}', r"found no 'annotations'"),
        ('{"images": {}, "annotations": []}', r"found images: an object"),
        ('{"images": [{"sentences": []}]}', r"Karpathy's files: use kind: karpathy"),
        ('{"images": [{"id": 1}], "annotations": []}', r'images entry 0 without "id" or "file_name"'),
        ('{"images": [{"id": [1], "file_name": "x"}], "annotations": []}', r"images entry 0"),
        ('{"images": [7], "annotations": []}', r"images entry 0"),
        ('{"images": [], "annotations": [{"id": 1}]}', r'annotations entry 0 without "id" or "image_id"'),
        (
            '{"images": [], "annotations": [{"id": 1, "image_id": 1, "bbox": []}]}',
            r"instances_ or keypoints_",
        ),
        ('{"images": [], "annotations": []}', r"names no image for the split 'train'"),
        ("[" * 100_000, r"nested too deeply|broken JSON"),
    ],
)
def test_other_formats_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = write_file(tmp_path / "annotations/captions_train2017.json", content)
    with pytest.raises(UserError, match=message) as caught:
        load(CocoConfig(root=str(tmp_path), val=None, images=None))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_invalid_utf8_is_located(tmp_path: Path) -> None:
    path = write_coco(tmp_path) / "annotations/captions_train2017.json"
    content = path.read_bytes()
    place = content.index(b"caption 1 of 2")
    path.write_bytes(content[:place] + b"\xe9" + content[place + 1 :])
    with pytest.raises(UserError, match=f"not UTF-8 at byte {place}"):
        load(CocoConfig(root=str(tmp_path), val=None))
    path.write_bytes(b"\xef\xbb\xbf" + content.replace(b", ", b",\r\n"))
    assert len(load(CocoConfig(root=str(tmp_path), val=None)).records) == 3


def test_duplicate_ids_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "annotations/captions_train2017.json"
    entries = [coco_annotation(n % 7, 1, "a") for n in range(14)]
    write_json_file(path, coco_json([coco_image(1)], entries))
    with pytest.raises(UserError, match=r"7 annotation ids occur twice \(first \[0, 1, 2, 3, 4\]\)"):
        load(CocoConfig(root=str(tmp_path), val=None, images=None))
    write_json_file(
        path, coco_json([coco_image(1), coco_image(2), coco_image(1)], [coco_annotation(1, 1, "a")])
    )
    with pytest.raises(UserError, match=r"1 image ids occur twice \(first \[1\]\)"):
        load(CocoConfig(root=str(tmp_path), val=None, images=None))


@needs_shared
def test_real_captions_equal_the_json_file() -> None:
    with open(SHARED / "captions_val2017.json", encoding="utf-8") as file:
        content = json.load(file)
    captions: dict[int, list[str]] = {}
    for entry in content["annotations"]:
        captions.setdefault(entry["image_id"], []).append(entry["caption"].strip())
    config = CocoConfig(root=str(SHARED), train=None, val="captions_val2017.json", images=None)
    collection = load(config)
    assert splits_and_captions(collection) == {key: ("val", tuple(value)) for key, value in captions.items()}
    assert len(collection.records) == 5000 and sum(len(r.captions) for r in collection.records) == 25014


@needs_shared
def test_real_photographs() -> None:
    collection = load(CocoConfig(root=str(SHARED / "coco_mini"), val=None))
    assert len(collection.records) == 80 and collection.skipped == []
    assert all(os.path.isfile(record.path) for record in collection.records)
