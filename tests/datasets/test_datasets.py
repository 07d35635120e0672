"""Data sets: every layout gives the records that its files state, every broken input the promised end."""

from __future__ import annotations

import csv
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from captioning.datasets import (
    CocoConfig,
    DatasetConfig,
    Flickr8kConfig,
    Flickr30kConfig,
    FolderConfig,
    KarpathyConfig,
    ShapesConfig,
    load,
    of_split,
)
from captioning.datasets.checks import caption_problem
from captioning.datasets.disk import random_splits
from captioning.errors import UserError
from captioning.records import Collection, ImageRecord
from tests.helpers.shared_data import SHARED, needs_shared


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where `skipped.csv` goes when nobody names a place


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def put_json(path: Path, value: Any) -> Path:
    return put(path, json.dumps(value))


def as_dict(collection: Collection) -> dict[Any, tuple[str, tuple[str, ...]]]:
    return {record.image_id: (record.split, record.captions) for record in collection.records}


def skipped_rows(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


# Flickr8k


def flickr8k(root: Path, *, images: str = "images", text: str = "", test: bool = True) -> Path:
    """A small Flickr8k: a.jpg and b.jpg train, c.jpg val, d.jpg test, e.jpg and f.jpg.1 in no list."""
    touch(root / images, "a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg.1"]
    lines = [f"{name}#{k}\tA {name[0]} , number {k} ." for name in names for k in range(3)]
    put(root / text / "Flickr8k.token.txt", "\n".join(lines) + "\n")
    put(root / text / "Flickr_8k.trainImages.txt", "a.jpg\nb.jpg\n")
    put(root / text / "Flickr_8k.devImages.txt", "c.jpg\n")
    if test:
        put(root / text / "Flickr_8k.testImages.txt", "d.jpg")
    return root


def test_flickr8k_original_layout(tmp_path: Path) -> None:
    collection = load(Flickr8kConfig(root=str(flickr8k(tmp_path))))
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


def test_flickr8k_as_its_zips_unpack_and_without_the_test_list(tmp_path: Path) -> None:
    flickr8k(tmp_path, images="Flicker8k_Dataset", text="Flickr8k_text", test=False)
    collection = load(Flickr8kConfig(root=str(tmp_path)))
    assert [(r.image_id, r.split) for r in collection.records] == [
        ("a.jpg", "train"),
        ("b.jpg", "train"),
        ("c.jpg", "val"),
    ]
    with pytest.raises(UserError, match=r"no images in the split 'test'; there are train \(2 images\), val"):
        of_split(collection, "test")
    assert [record.image_id for record in of_split(collection, "val")] == ["c.jpg"]


def test_flickr8k_csv_equals_the_token_file(tmp_path: Path) -> None:
    root = flickr8k(tmp_path)
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
    put(root / "unquoted.txt", text)
    assert load(Flickr8kConfig(root=str(root), captions="unquoted.txt")) == original


def test_flickr8k_without_lists_says_what_to_do(tmp_path: Path) -> None:
    touch(tmp_path / "Images", *(f"{n}.jpg" for n in range(89)))
    put(tmp_path / "captions.txt", "image,caption\n" + "".join(f"{n}.jpg,caption {n}\n" for n in range(89)))
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
        assert as_dict(load(Flickr8kConfig(root=str(tmp_path), splits="random", split_seed=1))) != as_dict(
            drawn
        )


def test_random_splits_depend_on_names_and_seed_alone() -> None:
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
    ] == FIRST_TWO


FIRST_TWO = ["46.jpg", "67.jpg"]  # by sha256sum of "0:0.jpg" ... "0:100.jpg", sorted


def test_flickr8k_label_twice_and_list_with_a_name_twice(tmp_path: Path) -> None:
    root = flickr8k(tmp_path)
    whole = (root / "Flickr8k.token.txt").read_text()
    put(root / "Flickr8k.token.txt", whole + "a.jpg#1\tagain\nb.jpg#0\tagain\n")
    with pytest.raises(UserError, match=r"2 caption labels occur twice \(first \['a\.jpg#1', 'b\.jpg#0'\]"):
        load(Flickr8kConfig(root=str(root)))
    put(root / "Flickr8k.token.txt", whole)
    put(root / "Flickr_8k.devImages.txt", "c.jpg\nc.jpg\n")
    with pytest.raises(UserError, match=r"devImages\.txt: 1 image names occur twice"):
        load(Flickr8kConfig(root=str(root)))


def test_image_in_two_lists_is_leakage(tmp_path: Path) -> None:
    root = flickr8k(tmp_path)
    put(root / "Flickr_8k.devImages.txt", "c.jpg\nb.jpg\na.jpg\n")
    with pytest.raises(UserError, match=r"leakage: 2 images are in two splits by id .* in train and val"):
        load(Flickr8kConfig(root=str(root)))


def test_empty_list_and_empty_token_file_stop(tmp_path: Path) -> None:
    root = flickr8k(tmp_path)
    put(root / "Flickr_8k.devImages.txt", "\n")
    with pytest.raises(UserError, match=r"devImages\.txt: names no image for the split 'val'"):
        load(Flickr8kConfig(root=str(root)))
    put(root / "Flickr8k.token.txt", "")
    with pytest.raises(UserError, match="expected the header image,caption"):
        load(Flickr8kConfig(root=str(root)))


@needs_shared
def test_real_flickr8k_both_layouts() -> None:
    root = SHARED / "flickr8k"
    tokens = load(Flickr8kConfig(root=str(root)))
    pairs = load(Flickr8kConfig(root=str(root), captions="captions.txt"))
    assert tokens == pairs and tokens.skipped == []
    assert len(of_split(tokens, "train")) == 6000 and len(of_split(tokens, "val")) == 1000
    assert all(len(record.captions) == 5 for record in tokens.records)
    assert {Path(r.path).name for r in tokens.records} == set(os.listdir(root / "images"))


# COCO


def coco(images: list[Any], annotations: list[Any]) -> dict[str, Any]:
    return {"info": {}, "images": images, "annotations": annotations, "licenses": []}


def image(number: int) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number:012d}.jpg"}


def annotation(number: int, image_id: int, caption: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "caption": caption}


def put_coco(root: Path, *, split: str = "train", first: int = 1, images: int = 3) -> Path:
    """A COCO split of `images` images, with 2 captions each, in the official layout."""
    numbers = range(first, first + images)
    entries = [annotation(10 * n + k, n, f"caption {k} of {n}\n") for k in range(2) for n in numbers]
    put_json(root / f"annotations/captions_{split}2017.json", coco([image(n) for n in numbers], entries))
    touch(root / f"{split}2017", *(f"{n:012d}.jpg" for n in numbers))
    return root


def test_coco_layout_and_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    put_coco(put_coco(tmp_path), split="val", first=7, images=2)
    collection = load(CocoConfig(root=str(tmp_path)))
    assert capfd.readouterr() == ("", "")
    assert as_dict(collection) == {
        n: ("train" if n < 7 else "val", (f"caption 0 of {n}", f"caption 1 of {n}")) for n in (1, 2, 3, 7, 8)
    }
    assert collection.records[3].path == str(tmp_path / "val2017" / "000000000007.jpg")
    os.rename(tmp_path / "train2017", tmp_path / "photos")
    put(tmp_path / "images" / "val2017" / "x", "")
    only = load(CocoConfig(root=str(tmp_path), val=None, images="photos"))
    assert only.records[0].path == str(tmp_path / "photos" / "000000000001.jpg")
    bare = load(CocoConfig(root=str(tmp_path), images=None))
    assert as_dict(bare) == as_dict(collection) and bare.records[0].path == "000000000001.jpg"


def test_coco_missing_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder; .* `captioning prepare coco --needs`"):
        load(CocoConfig(root=str(tmp_path / "none")))
    put_coco(tmp_path)
    with pytest.raises(UserError, match=r"captions_val2017\.json: no such file; add it, or set `val: null`"):
        load(CocoConfig(root=str(tmp_path)))
    with pytest.raises(UserError, match="no annotation file is named"):
        load(CocoConfig(root=str(tmp_path), train=None, val=None))
    os.rename(tmp_path / "train2017", tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"no image folder found \(looked for train2017/, images/"):
        load(CocoConfig(root=str(tmp_path), val=None))


BAD_CAPTIONS = [
    ("missing", "caption is null"),
    (None, "caption is null"),
    ("", "caption is empty"),
    (" \t\n", "caption is empty"),
    (" ... !", "caption has no words, only punctuation"),
    ("¡¿…“”?!", "caption has no words, only punctuation"),
    (17, "caption is not a string (int)"),
    (["a dog"], "caption is not a string (list)"),
    ({"raw": "a dog"}, "caption is not a string (dict)"),
    (True, "caption is not a string (bool)"),
    ("a dog \ud83d", "caption is not valid Unicode (half of a surrogate pair)"),
]


def test_bad_captions_are_skipped_with_their_annotation_id(tmp_path: Path) -> None:
    """Two images, a thousand good captions, and one of each kind of bad caption on the first image."""
    entries = [annotation(n, 1 + n % 2, f"good {n}") for n in range(1000)]
    entries += [annotation(5000 + n, 1, caption) for n, (caption, _) in enumerate(BAD_CAPTIONS)]
    del entries[1000]["caption"]
    path = put_json(tmp_path / "annotations/captions_train2017.json", coco([image(1), image(2)], entries))
    config = CocoConfig(root=str(tmp_path), val=None, images=None, max_bad=0.02)
    collection = load(config, skipped_csv=tmp_path / "out" / "skipped.csv")
    assert [len(record.captions) for record in collection.records] == [500, 500]
    expected = [[f"{path}: annotation {5000 + n}", reason] for n, (_, reason) in enumerate(BAD_CAPTIONS)]
    assert skipped_rows(tmp_path / "out" / "skipped.csv") == [["item", "reason"], *expected]
    assert [list(skip) for skip in collection.skipped] == expected
    with pytest.raises(UserError, match=r"11 of 1013 images and captions are bad, more than max_bad = 0\.01"):
        load(CocoConfig(root=str(tmp_path), val=None, images=None))


def test_usable_captions_in_every_script() -> None:
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


def test_image_without_captions_and_caption_without_image_are_both_counted(tmp_path: Path) -> None:
    content = coco(
        [image(1), image(2), image(3)], [annotation(4, 1, "a"), annotation(5, 9, "b"), annotation(6, 3, "c")]
    )
    path = put_json(tmp_path / "annotations/captions_train2017.json", content)
    touch(tmp_path / "train2017", "000000000001.jpg", "000000000002.jpg")
    os.symlink("nowhere", tmp_path / "train2017" / "000000000003.jpg")  # a broken link is no file
    collection = load(CocoConfig(root=str(tmp_path), val=None, max_bad=0.9))
    folder = tmp_path / "train2017"
    assert sorted(collection.skipped) == sorted(
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
    assert len(skipped_rows(tmp_path / "skipped.csv")) == 5


def test_no_photograph_at_all_names_the_folder(tmp_path: Path) -> None:
    put_coco(tmp_path)
    for path in (tmp_path / "train2017").iterdir():
        path.unlink()
    with pytest.raises(
        UserError, match=r"9 of 9 .*: 3 no such image file \(first .*train2017/000000000001\.jpg\)"
    ):
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
def test_coco_files_of_another_shape_stop(tmp_path: Path, content: str, message: str) -> None:
    path = put(tmp_path / "annotations/captions_train2017.json", content)
    with pytest.raises(UserError, match=message) as caught:
        load(CocoConfig(root=str(tmp_path), val=None, images=None))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_utf8_names_the_byte(tmp_path: Path) -> None:
    path = put_coco(tmp_path) / "annotations/captions_train2017.json"
    content = path.read_bytes()
    place = content.index(b"caption 1 of 2")
    path.write_bytes(content[:place] + b"\xe9" + content[place + 1 :])
    with pytest.raises(UserError, match=f"not UTF-8 at byte {place}"):
        load(CocoConfig(root=str(tmp_path), val=None))
    path.write_bytes(b"\xef\xbb\xbf" + content.replace(b", ", b",\r\n"))
    assert len(load(CocoConfig(root=str(tmp_path), val=None)).records) == 3


def test_duplicate_ids_stop_with_the_first_five(tmp_path: Path) -> None:
    path = tmp_path / "annotations/captions_train2017.json"
    entries = [annotation(n % 7, 1, "a") for n in range(14)]
    put_json(path, coco([image(1)], entries))
    with pytest.raises(UserError, match=r"7 annotation ids occur twice \(first \[0, 1, 2, 3, 4\]\)"):
        load(CocoConfig(root=str(tmp_path), val=None, images=None))
    put_json(path, coco([image(1), image(2), image(1)], [annotation(1, 1, "a")]))
    with pytest.raises(UserError, match=r"1 image ids occur twice \(first \[1\]\)"):
        load(CocoConfig(root=str(tmp_path), val=None, images=None))


def test_one_image_in_two_coco_files_is_leakage(tmp_path: Path) -> None:
    put_coco(put_coco(tmp_path, images=5), split="val", first=4, images=3)
    with pytest.raises(UserError, match=r"leakage: 2 images are in two splits by id \(first \[4, 5\]"):
        load(CocoConfig(root=str(tmp_path)))
    put_json(
        tmp_path / "annotations/captions_val2017.json",
        coco([{"id": 99, "file_name": "000000000002.jpg"}], [annotation(1, 99, "a")]),
    )
    with pytest.raises(UserError, match=r"leakage: 1 images are in two splits by file .*000000000002\.jpg"):
        load(CocoConfig(root=str(tmp_path), images="train2017"))


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/etc/passwd"])
def test_names_outside_the_root_stop(tmp_path: Path, name: str) -> None:
    images = [image(1), {"id": 2, "file_name": name}]
    put_json(tmp_path / "annotations/captions_train2017.json", coco(images, [annotation(1, 2, "a")]))
    touch(tmp_path / "train2017", "000000000001.jpg")
    for folder in ("auto", None):
        with pytest.raises(UserError, match=r"images entry 1: .* points outside the data root"):
            load(CocoConfig(root=str(tmp_path), val=None, images=folder))


@needs_shared
def test_real_coco_captions_equal_plain_json() -> None:
    with open(SHARED / "captions_val2017.json", encoding="utf-8") as file:
        content = json.load(file)
    captions: dict[int, list[str]] = {}
    for entry in content["annotations"]:
        captions.setdefault(entry["image_id"], []).append(entry["caption"].strip())
    config = CocoConfig(root=str(SHARED), train=None, val="captions_val2017.json", images=None)
    collection = load(config)
    assert as_dict(collection) == {key: ("val", tuple(value)) for key, value in captions.items()}
    assert len(collection.records) == 5000 and sum(len(r.captions) for r in collection.records) == 25014


@needs_shared
def test_real_coco_photographs() -> None:
    collection = load(CocoConfig(root=str(SHARED / "coco_mini"), val=None))
    assert len(collection.records) == 80 and collection.skipped == []
    assert all(os.path.isfile(record.path) for record in collection.records)


def test_folders_are_listed_once_and_no_photograph_is_looked_at(tmp_path: Path, monkeypatch: Any) -> None:
    put_coco(put_coco(tmp_path, images=211), split="val", first=1000, images=101)
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


# Karpathy


def karpathy_image(number: int, split: str, *, coco_year: str | None = None) -> dict[str, Any]:
    sentences = [
        {"tokens": ["x"], "raw": f"Caption {k} of {number}.", "imgid": number, "sentid": 10 * number + k}
        for k in range(2)
    ]
    name = f"COCO_{coco_year}_{number:012d}.jpg" if coco_year else f"{number}.jpg"
    entry: dict[str, Any] = {"filename": name, "imgid": number, "split": split, "sentences": sentences}
    return {**entry, "filepath": coco_year, "cocoid": number} if coco_year else entry


def put_karpathy(root: Path, *, year: str = "2014") -> Path:
    splits = ["train", "restval", "val", "test", "restval"]
    images = [
        karpathy_image(n, split, coco_year="train2014" if split == "train" else "val2014")
        for n, split in enumerate(splits, 1)
    ]
    put_json(root / "caption_datasets" / "dataset_coco.json", {"images": images, "dataset": "coco"})
    if year == "2014":
        touch(root, *(f"{each['filepath']}/{each['filename']}" for each in images))
    else:  # COCO 2017 kept image 3 in val and moved the others to train
        touch(root, *(f"{'val' if n == 3 else 'train'}2017/{n:012d}.jpg" for n in range(1, 6)))
    return root


@pytest.mark.parametrize("base", ["", "images"])
def test_karpathy_restval_joins_train(tmp_path: Path, base: str) -> None:
    put_karpathy(tmp_path)
    if base:
        (tmp_path / base).mkdir()
        for name in ("train2014", "val2014"):
            os.rename(tmp_path / name, tmp_path / base / name)
    collection = load(KarpathyConfig(root=str(tmp_path)))
    splits = {1: "train", 2: "train", 3: "val", 4: "test", 5: "train"}
    assert as_dict(collection) == {
        n: (splits[n], (f"Caption 0 of {n}.", f"Caption 1 of {n}.")) for n in range(1, 6)
    }
    assert collection.records[2].path == str(tmp_path / base / "val2014" / "COCO_val2014_000000000003.jpg")
    without = load(KarpathyConfig(root=str(tmp_path), restval=False))
    assert [record.image_id for record in without.records] == [1, 3, 4]


def test_karpathy_with_the_photographs_of_2017(tmp_path: Path) -> None:
    put_karpathy(tmp_path, year="2017")
    collection = load(KarpathyConfig(root=str(tmp_path)))
    assert [os.path.relpath(record.path, tmp_path) for record in collection.records] == [
        f"{'val' if n == 3 else 'train'}2017/{n:012d}.jpg" for n in range(1, 6)
    ]


def test_karpathy_flickr(tmp_path: Path) -> None:
    images = [karpathy_image(n, split) for n, split in ((1, "train"), (2, "val"), (3, "test"))]
    put_json(tmp_path / "dataset_flickr8k.json", {"images": images, "dataset": "flickr8k"})
    touch(tmp_path / "Flicker8k_Dataset", "1.jpg", "2.jpg", "3.jpg")
    collection = load(KarpathyConfig(root=str(tmp_path)))
    assert [(r.image_id, r.split) for r in collection.records] == [
        ("1.jpg", "train"),
        ("2.jpg", "val"),
        ("3.jpg", "test"),
    ]
    put_json(tmp_path / "dataset_flickr30k.json", {"images": images})
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
def test_karpathy_files_of_another_shape_stop(tmp_path: Path, content: Any, message: str) -> None:
    put_json(tmp_path / "dataset_coco.json", content)
    with pytest.raises(UserError, match=message):
        load(KarpathyConfig(root=str(tmp_path), images=None))


def test_karpathy_missing_files(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"none of dataset_coco\.json, .* found; `captioning prepare karpathy"
    ):
        load(KarpathyConfig(root=str(tmp_path)))
    put_karpathy(tmp_path)
    os.rename(tmp_path / "val2014", tmp_path / "else")
    with pytest.raises(UserError, match=r"no image folder found \(looked for val2014/, images/val2014/"):
        load(KarpathyConfig(root=str(tmp_path)))


# Flickr30k


def flickr30k(root: Path) -> Path:
    """The Kaggle copy: 3 images with 2 captions, the broken row among them, an image that no split names."""
    touch(root / "flickr30k_images/flickr30k_images", "1.jpg", "2199200615.jpg", "3.jpg", "4.jpg")
    put(
        root / "flickr30k_images/results.csv",
        "image_name| comment_number| comment\n"
        "1.jpg| 0| Two young guys with shaggy hair | hands look .\n"
        '1.jpg| 1| Two " friends .\n'
        "2199200615.jpg| 0| A dog runs .\n"
        "2199200615.jpg| 4   A dog runs across the grass .\n"
        "3.jpg| 0| A three .\n"
        "4.jpg| 0| A four .\n",
    )
    return root


def test_flickr30k_broken_row_and_splits(tmp_path: Path) -> None:
    root = flickr30k(tmp_path)
    expected = {
        "1.jpg": ("train", ("Two young guys with shaggy hair | hands look .", 'Two " friends .')),
        "2199200615.jpg": ("val", ("A dog runs .", "A dog runs across the grass .")),
        "3.jpg": ("test", ("A three .",)),
    }
    config = Flickr30kConfig(root=str(root))
    with pytest.raises(UserError, match=r"no splits found; add dataset_flickr30k\.json"):
        load(config)
    for name, names in (("train", "1"), ("val", "2199200615.jpg"), ("test", "3")):
        put(root / f"{name}.txt", names + "\n")
    by_lists = load(config)
    assert as_dict(by_lists) == expected and by_lists.skipped == []
    images = [{"filename": name, "split": split} for name, (split, _) in expected.items()]
    put_json(root / "caption_datasets" / "dataset_flickr30k.json", {"images": images})
    put(root / "val.txt", "1\n")  # Karpathy's file goes first
    assert load(config) == by_lists
    put(
        root / "results_20130124.token",
        "".join(
            f"{name}#{k}\t{text}\n" for name, (_, texts) in expected.items() for k, text in enumerate(texts)
        ),
    )
    assert load(Flickr30kConfig(root=str(root), captions="results_20130124.token")) == by_lists
    with pytest.warns(UserWarning, match="Flickr30k is split at random"):
        assert len(load(Flickr30kConfig(root=str(root), splits="random")).records) == 4


def test_flickr30k_rows_that_cannot_be_read(tmp_path: Path) -> None:
    root = flickr30k(tmp_path)
    for name, names in (("train", "1"), ("val", "2199200615.jpg"), ("test", "3")):
        put(root / f"{name}.txt", names + "\n")
    path = root / "flickr30k_images/results.csv"
    whole = path.read_text()
    put(path, whole + "no pipe at all\n5.jpg| x| no number\n3.jpg| 1|\n")
    collection = load(Flickr30kConfig(root=str(root), max_bad=0.5))
    assert [(skip.item.rpartition(": ")[2], skip.reason) for skip in collection.skipped] == [
        ("line 8", "not image_name| comment_number| comment"),
        ("line 9", "not image_name| comment_number| comment"),
        ("line 10", "caption is empty"),
    ]
    put(path, whole + "1.jpg| 0| again\n")
    with pytest.raises(
        UserError, match=r"captions \(image name and number\) occur twice \(first \[\('1\.jpg', '0'"
    ):
        load(Flickr30kConfig(root=str(root)))
    put(path, "image,caption\n")
    with pytest.raises(UserError, match="expected the header image_name"):
        load(Flickr30kConfig(root=str(root)))


# a folder


def test_folder_csv_and_jsonl_are_the_same(tmp_path: Path) -> None:
    names = ["a b.jpg", "sub/ü🐕.png", 'quote".jpg', "new\nline.jpg"]
    touch(tmp_path / "images", *names)
    rows = [
        (name, f'says "hi", {k}', ("train", "val", "test_unseen", "train")[n])
        for k in (0, 1)
        for n, name in enumerate(names)
    ]
    with open(tmp_path / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "caption", "split"), *rows])
    lines = [json.dumps({"file_name": f, "caption": c, "split": s}) for f, c, s in rows]
    put(tmp_path / "captions.jsonl", "\r\n".join(lines) + "\r\n\r\n")
    from_csv = load(FolderConfig(root=str(tmp_path)))
    assert as_dict(from_csv) == {
        name: (split, ('says "hi", 0', 'says "hi", 1')) for name, _, split in rows[:4]
    }
    assert load(FolderConfig(root=str(tmp_path), captions="captions.jsonl")) == from_csv
    lists = [json.dumps({"file_name": f, "caption": [c, c[:-1] + "1"], "split": s}) for f, c, s in rows[:4]]
    put(tmp_path / "lists.jsonl", "\n".join(lists))
    assert load(FolderConfig(root=str(tmp_path), captions="lists.jsonl")) == from_csv


def test_folder_without_splits(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n}.jpg" for n in range(53)))
    put(tmp_path / "captions.csv", "Caption,FILE_NAME\n" + "".join(f"c {n},{n}.jpg\n" for n in range(53)))
    drawn = load(FolderConfig(root=str(tmp_path)))
    assert {name: len(of_split(drawn, name)) for name in ("train", "val", "test")} == {
        "train": 43,
        "val": 5,
        "test": 5,
    }
    assert len(of_split(load(FolderConfig(root=str(tmp_path), split="test")), "test")) == 53


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption\nx.jpg,a\n", r"file_name missing \(found image, caption\); rename"),
        ("", r"file_name and caption missing \(found nothing\)"),
        (
            "file_name,caption\nx.jpg,a, b\n",
            r"line 2 has 3 columns, its header 2; put captions that contain commas",
        ),
        ('file_name,caption\nx.jpg,"open\ny.jpg,b\n', r"broken CSV at line 3"),
        (
            "file_name,caption,split\nx.jpg,a,train\nx.jpg,b,val\n",
            r"leakage: 1 images are in two splits by id",
        ),
        ("file_name,caption\nx.jpg,a\n../x.jpg,b\n", r"captions\.csv: line 3: '\.\./x\.jpg' points outside"),
        ("file_name,caption\n/x.jpg,b\n", r"line 2: '/x\.jpg' points outside the data root"),
        ("file_name,caption\n", r"contains no image with a caption"),
        ("file_name,caption\nx.jpg,\n", r"2 of 2 images and captions are bad"),
        ("file_name,caption\nmissing.jpg,a\n", r"1 no such image file \(first .*missing\.jpg\)"),
        ("file_name,caption,split\nx.jpg,a,train\n,b,val\n", r"1 no file_name \(first .*line 3\)"),
        ("file_name,caption\nx.jpg,a\n./x.jpg,b\n", r"1 image files occur twice"),
    ],
)
def test_folder_csv_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    touch(tmp_path, "x.jpg")
    put(tmp_path / "captions.csv", content)
    with pytest.raises(UserError, match=message) as caught:
        load(FolderConfig(root=str(tmp_path), split="train"))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "x.jpg", "caption": "a"', r"broken JSON at line 2, column \d+"),
        ('["x.jpg", "a"]', r"line 2: expected an object with file_name and caption, found list"),
        ('{"image": "x.jpg", "caption": "a"}', r"line 2: file_name missing \(found image, caption\)"),
        ('{"file_name": "x.jpg", "caption": "a", "split": 3}', r"line 2: split must be a name"),
    ],
)
def test_folder_jsonl_that_cannot_be_used(tmp_path: Path, line: str, message: str) -> None:
    touch(tmp_path, "x.jpg")
    put(tmp_path / "captions.jsonl", '{"file_name": "x.jpg", "caption": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        load(FolderConfig(root=str(tmp_path)))


def test_folder_without_captions_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no caption file found \(looked for captions\.csv, .* write one"):
        load(FolderConfig(root=str(tmp_path)))


# configs


def test_every_kind_is_told_apart_and_unknown_keys_are_refused() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(DatasetConfig)
    kinds = {
        "shapes": ShapesConfig,
        "flickr8k": Flickr8kConfig,
        "flickr30k": Flickr30kConfig,
        "karpathy": KarpathyConfig,
        "coco": CocoConfig,
        "folder": FolderConfig,
    }
    for kind, config in kinds.items():
        assert adapter.validate_python({"kind": kind, "root": "x"}) == config(root="x")
        for wrong in ({"rot": "x"}, {"max_bad": 1.5}, {"root": 3}):
            with pytest.raises(ValidationError):
                adapter.validate_python({"kind": kind, **wrong})
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "imagenet"})


def test_max_bad_counts_images_and_captions(tmp_path: Path) -> None:
    """One bad caption of 99 + 1 is 1 % with its image not counted twice: 1 of 101."""
    put(tmp_path / "captions.csv", "file_name,caption\n" + "x.jpg,a\n" * 99 + "x.jpg,!\n")
    config = {"root": str(tmp_path), "images": None, "split": "train"}
    assert len(load(FolderConfig(**config, max_bad=1 / 101)).skipped) == 1  # type: ignore[arg-type]
    with pytest.raises(UserError, match="1 of 101 images and captions are bad"):
        load(FolderConfig(**config, max_bad=1 / 102))  # type: ignore[arg-type]
    with pytest.raises(UserError):
        load(FolderConfig(**config, max_bad=0))  # type: ignore[arg-type]
