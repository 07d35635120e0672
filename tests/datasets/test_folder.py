"""A folder with a CSV or JSON Lines file of captions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from captioning.datasets import (
    FolderConfig,
    load,
    of_split,
)
from captioning.errors import UserError
from tests.helpers.datasets import (
    splits_and_captions,
    touch,
    write_file,
)


def test_csv_and_jsonl_give_the_same_records(tmp_path: Path) -> None:
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
    write_file(tmp_path / "captions.jsonl", "\r\n".join(lines) + "\r\n\r\n")
    from_csv = load(FolderConfig(root=str(tmp_path)))
    assert splits_and_captions(from_csv) == {
        name: (split, ('says "hi", 0', 'says "hi", 1')) for name, _, split in rows[:4]
    }
    assert load(FolderConfig(root=str(tmp_path), captions="captions.jsonl")) == from_csv
    lists = [json.dumps({"file_name": f, "caption": [c, c[:-1] + "1"], "split": s}) for f, c, s in rows[:4]]
    write_file(tmp_path / "lists.jsonl", "\n".join(lists))
    assert load(FolderConfig(root=str(tmp_path), captions="lists.jsonl")) == from_csv


def test_random_splits(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n}.jpg" for n in range(53)))
    write_file(
        tmp_path / "captions.csv", "Caption,FILE_NAME\n" + "".join(f"c {n},{n}.jpg\n" for n in range(53))
    )
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
        ("file_name,,,caption\nx.jpg,,,a\n", r"column 2 has no name \(header 'file_name,,,caption'\)"),
        ("file_name,caption,\nx.jpg,a,\n", r"column 3 has no name"),
        ("file_name,caption,Caption\nx.jpg,a,b\n", r"the header names 'caption' twice"),
        ("file_name,caption,split\nx.jpg,a,train\nx.jpg,b\n", r"line 3 has 2 columns, its header 3"),
        ("file_name;caption\nx.jpg;a, b\n", r"separated by semicolons \(header 'file_name;caption'\)"),
        ("file_name\tcaption\nx.jpg\ta\n", r"separated by tabs"),
        (
            'file_name,caption\nx.jpg,a\n\nx.jpg,"b\nx.jpg,c\nx.jpg,d\n',
            r"broken CSV at line 4: a quote is opened",
        ),
        ('file_name,caption\nx.jpg,"a\nx.jpg,"b"\n', r"broken CSV at line 2: ',' expected after '\"'"),
        ('file_name,caption\nx.jpg,"a\n' + "x.jpg,b\n" * 30_000, r"broken CSV at line 2: a quote is opened"),
        ("file_name,caption\nx.jpg,a\rx.jpg,b\n", r"broken CSV at line 2: a lone carriage return"),
        ("image,caption\nx.jpg,a\n", r"file_name missing \(found image, caption\); rename"),
        ("", r"file_name and caption missing \(found nothing\)"),
        (
            "file_name,caption\nx.jpg,a, b\n",
            r"line 2 has 3 columns, its header 2; put captions that contain commas",
        ),
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
def test_broken_csv_is_refused(tmp_path: Path, content: str, message: str) -> None:
    touch(tmp_path, "x.jpg")
    write_file(tmp_path / "captions.csv", content)
    with pytest.raises(UserError, match=message) as caught:
        load(FolderConfig(root=str(tmp_path), split="train"))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_row_counts_as_its_first_line(tmp_path: Path) -> None:
    write_file(tmp_path / "captions.csv", 'file_name,caption\nx.jpg,"on\ntwo lines"\n\nx.jpg,!\n')
    collection = load(FolderConfig(root=str(tmp_path), images=None, max_bad=0.5))
    assert collection.skipped[0].item.endswith("captions.csv: line 5")


def test_lines_may_end_in_carriage_returns(tmp_path: Path) -> None:
    """A CSV file as spreadsheets save it "for Macintosh", and one for Windows with a byte order mark."""
    for end in ("\r", "\r\n"):
        (tmp_path / "captions.csv").write_bytes(
            f"\ufefffile_name,caption{end}x.jpg,a dog{end}x.jpg,two dogs{end}".encode()
        )
        (record,) = load(FolderConfig(root=str(tmp_path), images=None)).records
        assert record.captions == ("a dog", "two dogs")


def test_a_list_of_words_is_no_list_of_captions(tmp_path: Path) -> None:
    lines = ['{"file_name": "x.jpg", "caption": ["a", "dog", "runs"]}'] * 2
    lines += ['{"file_name": "x.jpg", "caption": [["a", "dog"], ["the", "dog"]]}']
    write_file(tmp_path / "captions.jsonl", "\n".join(lines))
    message = r"4 caption is a list of words; join them with spaces \(first .*captions\.jsonl: line 1\)"
    with pytest.raises(UserError, match=message):
        load(FolderConfig(root=str(tmp_path), images=None))
    good = ['["a dog", "dogs"]', '["dog"]', '["一只狗在草地上跑", "两只狗在雪地里跑"]', '"dog"']
    write_file(
        tmp_path / "captions.jsonl",
        "".join(f'{{"file_name": "x.jpg", "caption": {text}}}\n' for text in good),
    )
    (record,) = load(FolderConfig(root=str(tmp_path), images=None)).records
    assert record.captions == ("a dog", "dogs", "dog", "一只狗在草地上跑", "两只狗在雪地里跑", "dog")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "x.jpg", "caption": "a"', r"broken JSON at line 2, column \d+"),
        ('["x.jpg", "a"]', r"line 2: expected an object with file_name and caption, found list"),
        ('{"image": "x.jpg", "caption": "a"}', r"line 2: file_name missing \(found image, caption\)"),
        ('{"file_name": "x.jpg", "caption": "a", "split": 3}', r"line 2: split must be a name"),
    ],
)
def test_broken_jsonl_is_refused(tmp_path: Path, line: str, message: str) -> None:
    touch(tmp_path, "x.jpg")
    write_file(tmp_path / "captions.jsonl", '{"file_name": "x.jpg", "caption": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        load(FolderConfig(root=str(tmp_path)))


def test_missing_caption_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no caption file found \(looked for captions\.csv, .* write one"):
        load(FolderConfig(root=str(tmp_path)))
