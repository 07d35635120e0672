"""Splits: their usual names, random splits, and the validation images of a data set that has none."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace

from captioning.errors import Note, UserError
from captioning.records import Collection, ImageRecord

SYNONYMS = {
    "train": ("training",),
    "val": ("valid", "validation", "dev", "development"),
    "test": ("testing",),
}
"""Other names of the three splits, in lower case. Upper and lower case make no difference either."""

MAX_DRAWN = 1000
"""Most images drawn for the validation split of a data set that has none, or for each split of an unofficial one."""


def usual_name(name: str) -> str:
    """train, val or test for their other names ("Train", "dev"); any other name unchanged."""
    lower = name.strip().lower()
    return next((usual for usual, others in SYNONYMS.items() if lower in (usual, *others)), name)


def usual_names(names: Iterable[str], *, where: str) -> dict[str, str]:
    """The names that are read as train, val or test, with that split; a note says so.

    "dev" stays as it is beside "val", because they may be two splits.
    """
    present = {name: usual_name(name) for name in dict.fromkeys(names)}
    renamed = {
        name: usual
        for name, usual in present.items()
        if name != usual and (usual not in present or name.lower() == usual)
    }
    if renamed:
        pairs = " and ".join(f"{name!r} as {usual}" for name, usual in renamed.items())
        warnings.warn(Note(f"{where}: reads the split {pairs}"), stacklevel=2)
    return renamed


def unify_names(collection: Collection, *, where: str) -> Collection:
    """The records and the skipped inputs under the usual names of their splits."""
    renamed = usual_names((record.split for record in collection.records), where=where)
    if not renamed:
        return collection
    return Collection(
        [replace(record, split=renamed.get(record.split, record.split)) for record in collection.records],
        [skip._replace(split=renamed.get(skip.split or "", skip.split)) for skip in collection.skipped],
    )


def random_splits(names: Iterable[str], *, seed: int, val: int, test: int) -> dict[str, str]:
    """A split for each name, by the rank of its hash: independent of the machine and the order of names.

    `val` and `test` are numbers of images; all other images are "train".
    """

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()

    ranked = sorted(set(names), key=rank)
    return {
        name: "test" if number < test else "val" if number < test + val else "train"
        for number, name in enumerate(ranked)
    }


def unofficial_splits(names: Sequence[str], *, seed: int, title: str) -> dict[str, str]:
    """Random splits of a data set that has official ones, with a note: 1,000 images each for val and test.

    Below 8,000 images val and test get an eighth each. `title` is the data set's name in the note.
    """
    size = min(MAX_DRAWN, len(names) // 8)
    warnings.warn(
        Note(
            f"{title} is split at random (seed {seed}; {size} images each for val and test, "
            "the rest for train): figures on it do not compare with published ones"
        ),
        stacklevel=4,
    )
    return random_splits(names, seed=seed, val=size, test=size)


def draw_validation(records: list[ImageRecord], *, seed: int, where: str) -> list[ImageRecord]:
    """The records with a tenth of the training images as val, if there is no val; a note says so.

    At least one image is drawn and at most `MAX_DRAWN`, by the hashes of the image ids. A single training image
    stays in train.
    """
    training = [str(record.image_id) for record in records if record.split == "train"]
    if len(training) < 2 or any(record.split == "val" for record in records):
        return records
    size = min(MAX_DRAWN, max(1, len(training) // 10))
    drawn = random_splits(training, seed=seed, val=size, test=0)
    warnings.warn(
        Note(
            f"{where}: has no split val; {size} of its {len(training):,} training images are drawn for it "
            f"(split_seed {seed})"
        ),
        stacklevel=2,
    )
    return [
        replace(record, split=drawn[str(record.image_id)]) if record.split == "train" else record
        for record in records
    ]


def training_splits(collection: Collection, *, where: str) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """The records of train and val, which training needs.

    Raises:
        UserError: one of them is empty.
    """
    training, validation = (
        [record for record in collection.records if record.split == split] for split in ("train", "val")
    )
    if not training:
        raise UserError(
            f"{where}: cannot be trained on: no images in the split train, only in "
            f"{describe_splits(collection.records)}; name a split train"
        )
    if not validation:
        raise UserError(
            f"{where}: cannot be trained on: training needs two images or more, one of them for validation, "
            f"found {describe_splits(collection.records)}"
        )
    return training, validation


def describe_splits(records: Sequence[ImageRecord]) -> str:
    """The splits with their sizes: "train (6,000 images), val (1,000 images)"."""
    names = [record.split for record in records]
    return ", ".join(f"{name} ({names.count(name):,} images)" for name in sort_splits(set(names)))


def sort_splits(splits: set[str]) -> list[str]:
    """Split names with train, val and test first, the others in alphabetical order."""
    usual = tuple(SYNONYMS)
    return sorted(splits, key=lambda split: (usual.index(split) if split in usual else len(usual), split))
