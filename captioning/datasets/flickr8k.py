"""Flickr8k in both layouts that exist -> records. Knows its files, nothing of what they are used for.

Hodosh, Young and Hockenmaier (2013), "Framing image description as a ranking task".

| layout | captions | splits |
|---|---|---|
| original release | `Flickr8k.token.txt`: `NAME.jpg#0<TAB>caption` | `Flickr_8k.{train,dev,test}Images.txt` |
| CSV copy | `captions.txt`: `image,caption`, quoted where needed | none: add the lists, or `splits: random` |
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from captioning.datasets import checks, disk
from captioning.datasets.checks import Entry, MaxBad
from captioning.errors import UserError
from captioning.records import Collection, Skip
from captioning.utils.files import read_text

Captions = dict[str, list[tuple[str, object]]]
"""For each image name its captions, each with a label that says where it stands."""

IMAGE_FOLDERS = ("images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset")
CAPTION_FILES = ("Flickr8k.token.txt", "captions.txt")
TEXT_FOLDERS = ("", "Flickr8k_text")
LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}


@dataclass(frozen=True, kw_only=True)
class Flickr8kConfig:
    """Flickr8k. File names are relative to `root`; those left at null or "auto" are looked for.

    `splits: official` reads the lists of the release; the list of test images may be absent.
    `splits: random` draws 1,000 images each for val and test (an eighth each where there are fewer than
    8,000) by `split_seed`, for copies without lists: no published figure uses such a split. `images: null`
    loads captions alone.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: Literal["flickr8k"] = "flickr8k"
    root: str = "data/flickr8k"
    images: str | None = disk.AUTO
    captions: str | None = None
    splits: Literal["official", "random"] = "official"
    split_seed: int = 0
    train_list: str | None = None
    dev_list: str | None = None
    test_list: str | None = None
    max_bad: MaxBad = 0.01


def read(config: Flickr8kConfig) -> Collection:
    """Records of Flickr8k; image ids are file names. Images named in no list are not part of the data set.

    Raises:
        UserError: a file is missing or broken, or no lists are there and `splits` is not `random`.
    """
    disk.need_root(config.root, "flickr8k")
    images = disk.ImageFolder(disk.find_images(config.root, config.images, IMAGE_FOLDERS))
    path = _caption_file(config)
    captions, skipped = read_tokens(path) if _is_token_file(path) else read_pairs(path)
    if config.splits == "random":
        lists = {}
        entries = _drawn(config, path, captions)
    else:
        lists = _lists(config)
        entries = _listed(lists, captions)
    collection = checks.refuse_empty_splits(checks.gather(entries, images), lists)
    return Collection(collection.records, skipped + collection.skipped)


def _caption_file(config: Flickr8kConfig) -> str:
    if config.captions is not None:
        return os.path.join(config.root, config.captions)
    path = disk.find_file(config.root, CAPTION_FILES, folders=TEXT_FOLDERS)
    if path is None:
        raise UserError(
            f"{config.root}: neither {' nor '.join(CAPTION_FILES)} is there; "
            "`captioning prepare flickr8k` says where they come from"
        )
    return path


def _is_token_file(path: str) -> bool:
    first = read_text(path).partition("\n")[0]
    return "\t" in first and "#" in first.partition("\t")[0]


def _lists(config: Flickr8kConfig) -> dict[str, str]:
    """Paths of the split lists by split name: as configured, or as found; test may be absent."""
    configured = {"train": config.train_list, "val": config.dev_list, "test": config.test_list}
    found = {
        split: os.path.join(config.root, name)
        if name is not None
        else disk.find_file(config.root, (LISTS[split],), folders=TEXT_FOLDERS)
        for split, name in configured.items()
    }
    absent = [LISTS[split] for split in ("train", "val") if found[split] is None]
    if absent:
        raise UserError(
            f"{config.root}: {' and '.join(absent)} not found; add the official lists (they come with "
            "Flickr8k.token.txt), or set `splits: random` for a seeded split no published figure uses"
        )
    return {split: path for split, path in found.items() if path is not None}


def _listed(lists: dict[str, str], captions: Captions) -> list[Entry]:
    entries: list[Entry] = []
    for split, path in lists.items():
        names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
        checks.refuse_repeated(names, where=path, what="image names")
        entries += [
            Entry(name, name, split, captions.get(name, ()), f"{path}: entry {number}")
            for number, name in enumerate(names, 1)
        ]
    return entries


def _drawn(config: Flickr8kConfig, path: str, captions: Captions) -> list[Entry]:
    held_out = min(1000, len(captions) // 8)
    splits = disk.random_splits(captions, seed=config.split_seed, val=held_out, test=held_out)
    warnings.warn(
        f"Flickr8k is split at random (seed {config.split_seed}; {held_out} images each for val and test, "
        "the rest for train): figures on it do not compare with published ones",
        stacklevel=3,
    )
    return [
        Entry(name, name, splits[name], found, f"{path}: entry {number}")
        for number, (name, found) in enumerate(captions.items(), 1)
    ]


def read_tokens(path: str) -> tuple[Captions, list[Skip]]:
    """Captions of a token file, `NAME.jpg#0<TAB>caption` a line (Flickr8k and Flickr30k).

    One name in Flickr8k's ends in `.jpg.1`; it is kept as it stands, for no list and no folder has it.

    Raises:
        UserError: the file is unreadable, or a label (`NAME.jpg#0`) occurs twice.
    """
    captions: Captions = {}
    skipped: list[Skip] = []
    labels: list[str] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        label, tab, caption = line.partition("\t")
        name, mark, _ = label.rpartition("#")
        if tab and mark and name:
            captions.setdefault(name.strip(), []).append((label, caption))
            labels.append(label)
        elif line.strip():
            skipped.append(Skip(f"{path}: line {number}", "not NAME.jpg#0<TAB>caption"))
    checks.refuse_repeated(labels, where=path, what="caption labels")
    return captions, skipped


def read_pairs(path: str) -> tuple[Captions, list[Skip]]:
    """Captions of a CSV file with the header `image,caption`.

    Further commas belong to the caption: copies written without quotes are read as they were meant.

    Raises:
        UserError: the file is unreadable, its header another one, or a quote left open.
    """
    captions: Captions = {}
    skipped: list[Skip] = []
    rows = disk.read_csv(path)
    _, header = next(rows, (1, []))
    if [field.strip().lower() for field in header] != ["image", "caption"]:
        raise UserError(f"{path}: expected the header image,caption, found {','.join(header)[:80]!r}")
    for number, (name, *rest) in rows:
        if rest and name.strip():
            captions.setdefault(name.strip(), []).append((f"{path}: line {number}", ",".join(rest)))
        else:
            skipped.append(Skip(f"{path}: line {number}", "not image,caption"))
    return captions, skipped
