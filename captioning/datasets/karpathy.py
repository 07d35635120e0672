"""Karpathy's JSON of COCO, Flickr8k or Flickr30k -> records. Knows that format and where photographs lie.

Karpathy and Fei-Fei (2015), "Deep visual-semantic alignments for generating image descriptions". Its
splits are the ones that papers report on; COCO's `restval` joins `train`, which makes 113,287 / 5,000 /
5,000 images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from captioning.datasets import checks, disk, flickr8k
from captioning.datasets.checks import Entry, MaxBad
from captioning.errors import UserError
from captioning.records import Collection
from captioning.utils.files import read_json

CAPTION_FILES = ("dataset_coco.json", "dataset_flickr8k.json", "dataset_flickr30k.json")
TEXT_FOLDERS = ("", "annotations", "caption_datasets", "karpathy")
IMAGE_FOLDERS = (
    *flickr8k.IMAGE_FOLDERS,
    "flickr30k-images",
    "flickr30k_images/flickr30k_images",
    "flickr30k_images",
)
RESTVAL = "restval"


@dataclass(frozen=True, kw_only=True)
class KarpathyConfig:
    """One of Karpathy's three files, named by `captions` or the only one found under `root`.

    COCO's photographs are looked for in `train2014/` and `val2014/`, then in `train2017/` and `val2017/` (the
    same photographs under other names), under `root` or `root/images`; Flickr's in the usual folders.
    `restval: false` leaves COCO's 30,504 restval images out. `images: null` loads captions alone.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: Literal["karpathy"] = "karpathy"
    root: str = "data/coco"
    images: str | None = disk.AUTO
    captions: str | None = None
    restval: bool = True
    max_bad: MaxBad = 0.01


def read(config: KarpathyConfig) -> Collection:
    """Records of the file; image ids are COCO's numbers, or for Flickr the file names.

    Raises:
        UserError: a file or folder is missing, the file has another shape, or a sentence id occurs twice.
    """
    disk.need_root(config.root, "karpathy")
    path = _caption_file(config)
    content = read_json(path)
    _check_shape(path, content)
    found = [image for image in content["images"] if config.restval or image["split"] != RESTVAL]
    sentences = (sentence.get("sentid") for image in found for sentence in image["sentences"])
    checks.refuse_repeated((each for each in sentences if each is not None), where=path, what="sentence ids")
    images, names = _photographs(config, found)
    return checks.gather(_entries(path, found, names), images)


def _caption_file(config: KarpathyConfig) -> str:
    if config.captions is not None:
        return os.path.join(config.root, config.captions)
    found = [disk.find_file(config.root, (name,), folders=TEXT_FOLDERS) for name in CAPTION_FILES]
    paths = [path for path in found if path is not None]
    if not paths:
        raise UserError(
            f"{config.root}: none of {', '.join(CAPTION_FILES)} is there; "
            "`captioning prepare karpathy` downloads them"
        )
    if len(paths) > 1:
        raise UserError(f"{config.root}: {' and '.join(paths)} are there; say which one as `captions`")
    return paths[0]


def _entries(path: str, images: list[dict[str, Any]], names: list[str]) -> Iterator[Entry]:
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        captions = [
            (f"{path}: sentence {sentence.get('sentid', f'{place} of entry {number}')}", sentence.get("raw"))
            for place, sentence in enumerate(image["sentences"])
        ]
        split = "train" if image["split"] == RESTVAL else image["split"]
        image_id = image.get("cocoid", image["filename"])
        yield Entry(image_id, name, split, captions, f"{path}: images entry {number}")


def _photographs(config: KarpathyConfig, images: list[dict[str, Any]]) -> tuple[disk.ImageFolder, list[str]]:
    """The folder that holds the photographs, and each one's name in it."""
    names = [os.path.join(image.get("filepath", ""), image["filename"]) for image in images]
    if config.images is None:
        return disk.ImageFolder(None), names
    if not any("filepath" in image for image in images):
        return disk.ImageFolder(disk.find_images(config.root, config.images, IMAGE_FOLDERS)), names
    bases = (".", "images") if config.images == disk.AUTO else (config.images,)
    for year in ("2014", "2017"):
        for base in bases:
            folder = os.path.normpath(os.path.join(config.root, base))
            if os.path.isdir(os.path.join(folder, f"val{year}")):
                found = disk.ImageFolder(folder)
                return found, names if year == "2014" else _names_of_2017(found, images)
    tried = ", ".join(os.path.normpath(f"{base}/val{year}") + "/" for year in (2014, 2017) for base in bases)
    raise UserError(
        f"{config.root}: no photographs of COCO there (looked for {tried}); "
        "set `images`, to null where only captions are wanted"
    )


def _names_of_2017(folder: disk.ImageFolder, images: list[dict[str, Any]]) -> list[str]:
    """The names in COCO 2017 of the photographs of 2014: shorter ones, and most of val is in train."""
    names: list[str] = []
    for number, image in enumerate(images):
        if not isinstance(image.get("cocoid"), int):
            raise UserError(f"images entry {number} has no cocoid, which COCO 2017's file names need")
        name = f"{image['cocoid']:012d}.jpg"
        there = not folder.missing(folder.path(f"val2017/{name}", entry=name))
        names.append(f"{'val2017' if there else 'train2017'}/{name}")
    return names


def _check_shape(path: str, content: Any) -> None:
    def refuse(found: str, likely: str = "") -> None:
        raise UserError(
            f"{path}: expected Karpathy's format, "
            '{"images": [{"filename", "split", "sentences": [{"raw"}]}]}; '
            f"found {found}{likely}"
        )

    if not (isinstance(content, dict) and isinstance(content.get("images"), list)):
        refuse(
            f"{disk.json_kind(content)} at the root"
            if not isinstance(content, dict)
            else f"the keys {list(content)[:8]}"
        )
    coco = "annotations" in content
    for number, image in enumerate(content["images"]):
        if not (
            isinstance(image, dict)
            and isinstance(image.get("filename"), str)
            and isinstance(image.get("filepath", ""), str)
            and isinstance(image.get("split"), str)
            and isinstance(image.get("sentences"), list)
            and all(isinstance(sentence, dict) for sentence in image["sentences"])
        ):
            refuse(
                f"images entry {number}: {str(image)[:80]}",
                "; this looks like COCO's own annotations: use kind: coco" if coco else "",
            )
