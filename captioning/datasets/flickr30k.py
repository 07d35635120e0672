"""Flickr30k -> records. Knows its pipe-separated CSV with the broken row, its token file and its split lists.

Young et al. (2014), "From image descriptions to visual denotations". 31,783 images; the split that papers
report on (29,000 / 1,014 / 1,000) is Karpathy's, in `dataset_flickr30k.json` or in lists made from it.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from captioning.datasets import checks, disk
from captioning.datasets.checks import Entry, MaxBad
from captioning.datasets.flickr8k import Captions, read_tokens
from captioning.errors import UserError
from captioning.records import Collection, Skip
from captioning.utils.files import read_json, read_text

IMAGE_FOLDERS = (
    "flickr30k_images/flickr30k_images",
    "flickr30k_images",
    "flickr30k-images",
    "images",
    "Images",
)
CAPTION_FILES = ("results.csv", "results_20130124.token")
TEXT_FOLDERS = ("", "flickr30k_images", "flickr30k", "caption_datasets")
KARPATHY = "dataset_flickr30k.json"
LISTS = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}

ROW = re.compile(r"([^|]+?)\s*\|\s*(\d+)\s*(?:\|(.*)|\s(.*))", re.DOTALL)
"""`NAME| NUMBER| CAPTION`, or without the second pipe: so it stands in the row of 2199200615.jpg."""


@dataclass(frozen=True, kw_only=True)
class Flickr30kConfig:
    """Flickr30k. File names are relative to `root`; those left at null or "auto" are looked for.

    `splits: official` reads Karpathy's `dataset_flickr30k.json` or, where that is absent, the lists
    `train.txt`, `val.txt` and `test.txt` (a name a line, with or without `.jpg`). `splits: random` draws
    1,000 images each for val and test by `split_seed`: no published figure uses such a split. `images:
    null` loads captions alone.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: Literal["flickr30k"] = "flickr30k"
    root: str = "data/flickr30k"
    images: str | None = disk.AUTO
    captions: str | None = None
    splits: Literal["official", "random"] = "official"
    split_seed: int = 0
    max_bad: MaxBad = 0.01


def read(config: Flickr30kConfig) -> Collection:
    """Records of Flickr30k; image ids are file names. Images that no split names are left out.

    Raises:
        UserError: a file is missing or broken, or no split is there and `splits` is not `random`.
    """
    disk.need_root(config.root, "flickr30k")
    images = disk.ImageFolder(disk.find_images(config.root, config.images, IMAGE_FOLDERS))
    path = _caption_file(config)
    captions, skipped = read_tokens(path) if path.endswith(".token") else read_piped(path)
    splits, where = _drawn(config, path, captions) if config.splits == "random" else _official(config.root)
    entries = (
        Entry(name, name, split, captions.get(name, ()), f"{where[split]}: entry {number}")
        for number, (name, split) in enumerate(splits)
    )
    collection = checks.refuse_empty_splits(checks.gather(entries, images), where)
    return Collection(collection.records, skipped + collection.skipped)


def _caption_file(config: Flickr30kConfig) -> str:
    if config.captions is not None:
        return os.path.join(config.root, config.captions)
    path = disk.find_file(config.root, CAPTION_FILES, folders=TEXT_FOLDERS)
    if path is None:
        raise UserError(
            f"{config.root}: neither {' nor '.join(CAPTION_FILES)} is there; "
            "`captioning prepare flickr30k` says where they come from"
        )
    return path


def read_piped(path: str) -> tuple[Captions, list[Skip]]:
    """Captions of the pipe-separated CSV, `image_name| comment_number| comment`, without quotes.

    The row that lacks its second pipe is read as it was meant.

    Raises:
        UserError: the file is unreadable, its header another one, or a caption's number occurs twice.
    """
    captions: Captions = {}
    skipped: list[Skip] = []
    labels: list[tuple[str, str]] = []
    lines = read_text(path).split("\n")
    header = [field.strip() for field in lines[0].split("|")]
    if header != ["image_name", "comment_number", "comment"]:
        raise UserError(
            f"{path}: expected the header image_name| comment_number| comment, found {lines[0][:80]!r}"
        )
    for number, line in enumerate(lines[1:], 2):
        if match := ROW.fullmatch(line):
            name, place, usual, broken = match.groups()
            captions.setdefault(name, []).append((f"{path}: line {number}", usual or broken or ""))
            labels.append((name, place))
        elif line.strip():
            skipped.append(Skip(f"{path}: line {number}", "not image_name| comment_number| comment"))
    checks.refuse_repeated(labels, where=path, what="captions (image name and number)")
    return captions, skipped


def _official(root: str) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Names with their splits, in file order, and for each split the file that says so."""
    path = disk.find_file(root, (KARPATHY,), folders=TEXT_FOLDERS)
    if path is not None:
        names = [(_field(path, entry, "filename"), _field(path, entry, "split")) for entry in _images(path)]
        return names, dict.fromkeys((split for _, split in names), path)
    lists = {split: disk.find_file(root, (name,), folders=TEXT_FOLDERS) for split, name in LISTS.items()}
    found = {split: name for split, name in lists.items() if name is not None}
    if not {"train", "val"} <= found.keys():
        raise UserError(
            f"{root}: no splits there; add {KARPATHY} (`captioning prepare karpathy` downloads it) or "
            f"{', '.join(LISTS.values())}, or set `splits: random` for a split no published figure uses"
        )
    names = []
    for split, name in found.items():
        lines = [line.strip() for line in read_text(name).split("\n") if line.strip()]
        checks.refuse_repeated(lines, where=name, what="image names")
        names += [(line if line.endswith(".jpg") else f"{line}.jpg", split) for line in lines]
    return names, found


def _images(path: str) -> list[Any]:
    content = read_json(path)
    if not (isinstance(content, dict) and isinstance(content.get("images"), list)):
        raise UserError(f"{path}: expected Karpathy's format, an object with a list of images")
    return content["images"]


def _field(path: str, entry: Any, key: str) -> str:
    if not (isinstance(entry, dict) and isinstance(entry.get(key), str)):
        raise UserError(f"{path}: expected images with {key!r}, found {str(entry)[:80]}")
    return str(entry[key])


def _drawn(
    config: Flickr30kConfig, path: str, captions: Captions
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    held_out = min(1000, len(captions) // 8)
    splits = disk.random_splits(captions, seed=config.split_seed, val=held_out, test=held_out)
    warnings.warn(
        f"Flickr30k is split at random (seed {config.split_seed}; {held_out} images each for val and test, "
        "the rest for train): figures on it do not compare with published ones",
        stacklevel=3,
    )
    return [(name, splits[name]) for name in captions], dict.fromkeys(splits.values(), path)
