"""Names of splits, and the validation images of a data set that has none."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import pytest

from captioning.datasets import FolderConfig, KarpathyConfig, load, of_split
from captioning.datasets.splits import draw_validation, training_splits, usual_name, usual_names
from captioning.errors import Note, UserError
from captioning.records import Collection, ImageRecord
from tests.helpers.datasets import write_file, write_json_file


def split_sizes(collection: Collection) -> dict[str, int]:
    splits = [record.split for record in collection.records]
    return {split: splits.count(split) for split in splits}


def write_rows(root: Path, splits: str) -> FolderConfig:
    """Captions of one image for each of the space-separated splits; `-` stands for an empty cell."""
    rows = [
        f"{number}.jpg,a dog,{'' if split == '-' else split}" for number, split in enumerate(splits.split())
    ]
    write_file(root / "captions.csv", "\n".join(["file_name,caption,split", *rows]))
    return FolderConfig(root=str(root), images=None)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("Train VALID Testing", {"Train": "train", "VALID": "val", "Testing": "test"}),
        ("training dev", {"training": "train", "dev": "val"}),
        ("train Train validation", {"Train": "train", "validation": "val"}),
        ("train val dev Val", {"Val": "val"}),  # dev beside val may be a split of its own
        ("train val test test_unseen odd", {}),
    ],
)
def test_other_names_of_the_splits(tmp_path: Path, names: str, expected: dict[str, str]) -> None:
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        assert usual_names(names.split(), where="here") == expected
    assert [str(note.message) for note in notes] == (
        ["here: reads the split " + " and ".join(f"{a!r} as {b}" for a, b in expected.items())]
        if expected
        else []
    )


def test_folder_with_other_names(tmp_path: Path) -> None:
    """An image listed in Train and train is in one split, and one in dev and train in two."""
    config = write_rows(tmp_path, "Train train validation dev")
    with pytest.warns(Note, match=r"captions\.csv: reads the split 'Train' as train and 'validation' as val"):
        collection = load(config)
    assert split_sizes(collection) == {"train": 2, "val": 2}
    assert of_split(collection, "Validation") == of_split(collection, "val")
    with open(tmp_path / "captions.csv", "a") as file:
        file.write("\n0.jpg,two dogs,train")
    with pytest.warns(Note):
        assert load(config).records[0].captions == ("a dog", "two dogs")
    with open(tmp_path / "captions.csv", "a") as file:
        file.write("\n0.jpg,three dogs,dev")
    with pytest.warns(Note), pytest.raises(UserError, match=r"leakage: 1 images are in two splits by id"):
        load(config)


def test_names_of_every_data_set_are_understood(tmp_path: Path) -> None:
    images = [
        {"filename": f"{n}.jpg", "split": split, "sentences": [{"raw": "a dog"}]}
        for n, split in enumerate(("train", "restval", "valid", "test"))
    ]
    write_json_file(tmp_path / "dataset_flickr8k.json", {"images": images})
    with pytest.warns(Note, match="reads the split 'valid' as val"):
        collection = load(KarpathyConfig(root=str(tmp_path), images=None))
    assert split_sizes(collection) == {"train": 2, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("splits", "expected", "note"),
    [
        ("train " * 43 + "test", {"train": 39, "val": 4, "test": 1}, "4 of its 43 training images are drawn"),
        ("train train", {"train": 1, "val": 1}, "1 of its 2 training images are drawn"),
        ("- " * 8, {"train": 7, "val": 1}, "divided at random: 7 train, 1 val .split_seed 0."),
        ("- " * 2, {"train": 1, "val": 1}, "divided at random: 1 train, 1 val"),
        ("train val", {"train": 1, "val": 1}, None),
        ("train", {"train": 1}, None),
        ("test test", {"test": 2}, None),
    ],
)
def test_missing_validation_images_are_drawn(
    tmp_path: Path, splits: str, expected: dict[str, int], note: str | None
) -> None:
    config = write_rows(tmp_path, splits)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        collection = load(config)
    assert split_sizes(collection) == expected
    if note:
        with pytest.warns(Note, match=note):
            assert load(config) == collection
    assert len(notes) == bool(note)


def test_the_drawn_images_are_those_of_the_lowest_hashes() -> None:
    records = [ImageRecord(number, "", ("a",), "train") for number in range(23)]
    for seed in (0, 7):
        with pytest.warns(Note, match=rf"x: has no split val; 2 of its 23 .*\(split_seed {seed}\)"):
            drawn = draw_validation(records, seed=seed, where="x")
        ranked = sorted(range(23), key=lambda n: hashlib.sha256(f"{seed}:{n}".encode()).hexdigest())
        assert {record.image_id for record in drawn if record.split == "val"} == set(ranked[:2])


def test_what_cannot_be_trained_on() -> None:
    def collection(*splits: str) -> Collection:
        return Collection([ImageRecord(n, "", ("a",), split) for n, split in enumerate(splits)], [])

    training, validation = training_splits(collection("train", "val", "test"), where="x")
    assert (training[0].split, validation[0].split) == ("train", "val")
    with pytest.raises(UserError, match=r"x: .* no images in the split train, only in val \(1 images\), all"):
        training_splits(collection("val", "all"), where="x")
    with pytest.raises(UserError, match=r"x: .* needs two images or more, .* found train \(1 images\)"):
        training_splits(collection("train"), where="x")


def test_usual_names_of_single_splits() -> None:
    assert [usual_name(name) for name in (" Dev ", "TRAIN", "val2017", "Odd")] == [
        "val", "train", "val2017", "Odd",
    ]  # fmt: skip


def test_a_drawn_split_is_the_same_for_the_settings_of_a_run(tmp_path: Path, recwarn: Any) -> None:
    write_rows(tmp_path, "train " * 40)
    drawn = [
        {record.image_id for record in of_split(load(config), "val")}
        for config in (
            FolderConfig(root=str(tmp_path), images=None),
            FolderConfig(root=str(tmp_path), images=None),
            FolderConfig(root=str(tmp_path), images=None, split_seed=1),
        )
    ]
    assert drawn[0] == drawn[1] != drawn[2]
