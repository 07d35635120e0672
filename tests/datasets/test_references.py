"""Reference captions from caption files of every format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captioning.datasets.references import match_ids, read_references
from captioning.errors import UserError
from captioning.records import ImageRecord
from tests.helpers.datasets import coco_annotation, coco_image, coco_json, write_file

PIPED = "image_name| comment_number| comment\na.jpg| 0| a dog\na.jpg| 1| two dogs\n"
KARPATHY = {
    "images": [
        {"filename": f"{split}.jpg", "split": split, "sentences": [{"raw": "a dog"}, {"raw": f"in {split}"}]}
        for split in ("train", "restval", "test")
    ]
}
ROWS = [{"file_name": "a.jpg", "caption": "a dog"}, {"file_name": "a.jpg", "caption": "two dogs"}]
UNSPLIT_FILES = {
    "captions_x.json": json.dumps(
        coco_json([coco_image(7)], [coco_annotation(1, 7, "a dog"), coco_annotation(2, 7, "two dogs")])
    ),
    "some.token.txt": "a.jpg#0\ta dog\na.jpg#1\ttwo dogs\n",
    "captions.txt": "image,caption\na.jpg,a dog\na.jpg,two dogs\n",
    "results.csv": PIPED,
    "mine.csv": "caption,file_name\na dog,a.jpg\ntwo dogs,a.jpg\n",
    "mine.jsonl": "\n".join(map(json.dumps, ROWS)),
}


@pytest.mark.parametrize("name", UNSPLIT_FILES)
def test_files_without_splits(tmp_path: Path, name: str) -> None:
    path = write_file(tmp_path / name, UNSPLIT_FILES[name])
    references = read_references(str(path))
    assert references.captions() == {7 if "x.json" in name else "a.jpg": ("a dog", "two dogs")}
    assert references.split == name.split(".")[0]
    assert read_references(str(path), split="dev").split == "dev"


def test_karpathys_splits(tmp_path: Path) -> None:
    path = str(write_file(tmp_path / "dataset_flickr8k.json", json.dumps(KARPATHY)))
    with pytest.raises(UserError, match=r"contains train \(2 images\), test \(1 images\); choose one"):
        read_references(path)
    assert read_references(path, split="test").captions() == {"test.jpg": ("a dog", "in test")}
    with pytest.raises(UserError, match="no images in the split 'val'"):
        read_references(path, split="val")


def test_lists_beside_a_token_file_give_its_splits(tmp_path: Path) -> None:
    path = str(write_file(tmp_path / "Flickr8k.token.txt", "a.jpg#0\ta dog\nb.jpg#0\ta cat\n"))
    write_file(tmp_path / "Flickr_8k.trainImages.txt", "a.jpg\n")
    write_file(tmp_path / "Flickr_8k.devImages.txt", "b.jpg\n")
    assert read_references(path, split="val").captions() == {"b.jpg": ("a cat",)}
    piped = str(write_file(tmp_path / "results.csv", PIPED))
    for name, image in (("train", "a"), ("val", "none")):
        write_file(tmp_path / f"{name}.txt", image)
    with pytest.raises(UserError, match="image without captions"):
        read_references(piped, split="train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.txt",
            "hello\n",
            r"unknown format .* use Flickr8k\.token\.txt or .*, or a CSV or JSONL with file_name",
        ),
        ("x.json", '[{"image_id": 1, "caption": "a dog"}]', "look like results"),
        ("x.csv", "file_name,caption\na.jpg,?\n", r"x\.csv: 2 of 2 images and captions are bad"),
        ("x.jsonl", '{"caption": "a dog"}', "file_name missing"),
        ("x.csv", "file_name;caption\na.jpg;a dog\n", "separated by semicolons"),
        ("x.csv", "image;caption\na.jpg;a dog\n", "separated by semicolons"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_references(str(write_file(tmp_path / name, content)))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_references(str(tmp_path / "none.json"))
    with pytest.raises(UserError, match="is a folder"):
        read_references(str(tmp_path))


def test_predictions_are_matched_by_id_file_name_or_text() -> None:
    records = [ImageRecord(7, "images/a.jpg", ("x",), "val"), ImageRecord(8, "images/b.jpg", ("y",), "val")]
    assert match_ids([(8, "p"), (9, "q")], records) == ([(8, "p"), (9, "q")], "image id")
    assert match_ids([("b.jpg", "p"), ("c.jpg", "q")], records) == ([(8, "p"), ("c.jpg", "q")], "file name")
    assert match_ids([("7", "p")], records) == ([(7, "p")], "image id as text")
    assert match_ids([("z", "p")], records) == ([("z", "p")], "image id")
