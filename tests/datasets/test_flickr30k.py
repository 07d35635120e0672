"""Flickr30k: the broken row, and all forms of split lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from captioning.datasets import (
    Flickr30kConfig,
    load,
)
from captioning.errors import UserError
from tests.helpers.datasets import (
    splits_and_captions,
    touch,
    write_file,
    write_json_file,
)


def write_flickr30k(root: Path) -> Path:
    """The Kaggle copy: 3 images with 2 captions, the broken row among them, an image that no split names."""
    touch(root / "flickr30k_images/flickr30k_images", "1.jpg", "2199200615.jpg", "3.jpg", "4.jpg")
    write_file(
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


def test_broken_row_and_splits(tmp_path: Path) -> None:
    root = write_flickr30k(tmp_path)
    expected = {
        "1.jpg": ("train", ("Two young guys with shaggy hair | hands look .", 'Two " friends .')),
        "2199200615.jpg": ("val", ("A dog runs .", "A dog runs across the grass .")),
        "3.jpg": ("test", ("A three .",)),
    }
    config = Flickr30kConfig(root=str(root))
    with pytest.raises(UserError, match=r"no splits found; add dataset_flickr30k\.json"):
        load(config)
    for name, names in (("train", "1"), ("val", "2199200615.jpg"), ("test", "3")):
        write_file(root / f"{name}.txt", names + "\n")
    by_lists = load(config)
    assert splits_and_captions(by_lists) == expected and by_lists.skipped == []
    images = [{"filename": name, "split": split} for name, (split, _) in expected.items()]
    write_json_file(root / "caption_datasets" / "dataset_flickr30k.json", {"images": images})
    write_file(root / "val.txt", "1\n")  # Karpathy's file goes first
    assert load(config) == by_lists
    write_file(
        root / "results_20130124.token",
        "".join(
            f"{name}#{k}\t{text}\n" for name, (_, texts) in expected.items() for k, text in enumerate(texts)
        ),
    )
    assert load(Flickr30kConfig(root=str(root), captions="results_20130124.token")) == by_lists
    with pytest.warns(UserWarning, match="Flickr30k is split at random"):
        assert len(load(Flickr30kConfig(root=str(root), splits="random")).records) == 4


def test_rows_that_cannot_be_read(tmp_path: Path) -> None:
    root = write_flickr30k(tmp_path)
    for name, names in (("train", "1"), ("val", "2199200615.jpg"), ("test", "3")):
        write_file(root / f"{name}.txt", names + "\n")
    path = root / "flickr30k_images/results.csv"
    whole = path.read_text()
    write_file(path, whole + "no pipe at all\n5.jpg| x| no number\n3.jpg| 1|\n")
    collection = load(Flickr30kConfig(root=str(root), max_bad=0.5))
    assert [(skip.item.rpartition(": ")[2], skip.reason) for skip in collection.skipped] == [
        ("line 8", "not image_name| comment_number| comment"),
        ("line 9", "not image_name| comment_number| comment"),
        ("line 10", "caption is empty"),
    ]
    write_file(path, whole + "1.jpg| 0| again\n")
    with pytest.raises(
        UserError, match=r"captions \(image name and number\) occur twice \(first \[\('1\.jpg', '0'"
    ):
        load(Flickr30kConfig(root=str(root)))
    write_file(path, "image,caption\n")
    with pytest.raises(UserError, match="expected the header image_name"):
        load(Flickr30kConfig(root=str(root)))
