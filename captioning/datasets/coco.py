"""COCO's own `captions_*.json` -> records. Knows that format and COCO's folders, not Karpathy's splits.

Chen et al. (2015), "Microsoft COCO Captions: Data Collection and Evaluation Server". The files are indexed by
pycocotools; it checks nothing, so this file does.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pycocotools.coco import COCO
from pydantic import ConfigDict

from captioning.datasets import checks, disk
from captioning.datasets.checks import Entry, MaxBad
from captioning.errors import UserError
from captioning.records import Collection, Skip
from captioning.utils.files import read_json


@dataclass(frozen=True, kw_only=True)
class CocoConfig:
    """COCO with its own splits: an annotation file for each, null where there is none, paths under `root`.

    The photographs of `captions_val2017.json` are looked for in `val2017/`, `images/val2017/` and
    `images/`, or in `IMAGES/val2017/` and `IMAGES/` where `images` names a folder. `images: null` loads
    captions alone.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: Literal["coco"] = "coco"
    root: str = "data/coco"
    images: str | None = disk.AUTO
    train: str | None = "annotations/captions_train2017.json"
    val: str | None = "annotations/captions_val2017.json"
    test: str | None = None
    max_bad: MaxBad = 0.01


def read(config: CocoConfig) -> Collection:
    """Records of the named annotation files; image ids are COCO's numbers.

    Raises:
        UserError: a file or folder is missing, a file has another shape, or an id occurs twice.
    """
    disk.need_root(config.root, "coco")
    files = {"train": config.train, "val": config.val, "test": config.test}
    named = {split: os.path.join(config.root, name) for split, name in files.items() if name is not None}
    if not named:
        raise UserError(f"{config.root}: no annotation file is named; set train, val or test")
    for split, path in named.items():
        if not os.path.isfile(path):
            raise UserError(f"{path}: no such file; add it, or set `{split}: null` where there is none")
    whole = Collection([], [])
    for split, path in named.items():
        skipped: list[Skip] = []
        images = disk.ImageFolder(_image_folder(config, path))
        collection = checks.gather(_entries(path, split, skipped), images)
        whole.records.extend(collection.records)
        whole.skipped.extend(skipped + collection.skipped)
    return checks.refuse_empty_splits(whole, named)


def _image_folder(config: CocoConfig, path: str) -> str | None:
    """The folder of the photographs that the annotation file at `path` describes."""
    name = os.path.basename(path).removesuffix(".json").removeprefix("captions_")
    if config.images in (None, disk.AUTO):
        names: tuple[str, ...] = (name, f"images/{name}", "images")
        return disk.find_images(config.root, config.images, names)
    names = (f"{config.images}/{name}", str(config.images))
    return disk.find_images(config.root, disk.AUTO, names)


def _entries(path: str, split: str, skipped: list[Skip]) -> Iterator[Entry]:
    """Every image with its captions; captions of no image go to `skipped`."""
    index = load_index(path)
    for image_id, entries in index.imgToAnns.items():
        if image_id not in index.imgs:
            reason = f"caption without image: image {image_id} is not in the file"
            skipped.extend(Skip(_label(path, entry), reason) for entry in entries)
    for number, image in enumerate(index.imgs.values()):
        entries = index.imgToAnns.get(image["id"], ())
        captions = [(_label(path, entry), entry.get("caption")) for entry in entries]
        yield Entry(image["id"], image["file_name"], split, captions, f"{path}: images entry {number}")


def _label(path: str, annotation: dict[str, Any]) -> str:
    return f"{path}: annotation {annotation['id']}"


def load_index(path: str) -> COCO:
    """The annotation file, checked and indexed by pycocotools (which would print while doing so).

    Raises:
        UserError: broken JSON, another shape than that of caption annotations, or an id that occurs twice.
    """
    content = read_json(path)
    _check_shape(path, content)
    images, annotations = content["images"], content["annotations"]
    checks.refuse_repeated((image["id"] for image in images), where=path, what="image ids")
    checks.refuse_repeated((entry["id"] for entry in annotations), where=path, what="annotation ids")
    index = COCO()
    index.dataset = {"images": images, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


def _check_shape(path: str, content: Any) -> None:
    def refuse(found: str, likely: str = "") -> None:
        raise UserError(
            f'{path}: expected COCO caption annotations, {{"images": [...], "annotations": [...]}}; '
            f"found {found}{likely}"
        )

    if not isinstance(content, dict):
        first = content[0] if isinstance(content, list) and content else None
        results = isinstance(first, dict) and "image_id" in first and "caption" in first
        refuse(
            f"{disk.json_kind(content)} at the root",
            "; these look like results (predictions), not annotations" if results else "",
        )
    for key in ("images", "annotations"):
        if not isinstance(content.get(key), list):
            first_image = next(iter(content["images"] or ()), None) if key == "annotations" else None
            karpathy = isinstance(first_image, dict) and "sentences" in first_image
            refuse(
                f"{key}: {disk.json_kind(content[key])}" if key in content else f"no {key!r}",
                "; this looks like one of Karpathy's files: use kind: karpathy" if karpathy else "",
            )
    for number, image in enumerate(content["images"]):
        if not (
            isinstance(image, dict)
            and isinstance(image.get("file_name"), str)
            and type(image.get("id")) in (int, str)
        ):
            refuse(f'images entry {number} without "id" or "file_name": {str(image)[:80]}')
    for number, annotation in enumerate(content["annotations"]):
        if not (
            isinstance(annotation, dict)
            and type(annotation.get("id")) in (int, str)
            and type(annotation.get("image_id")) in (int, str)
        ):
            refuse(f'annotations entry {number} without "id" or "image_id": {str(annotation)[:80]}')
    if content["annotations"] and not any("caption" in entry for entry in content["annotations"]):
        found = ", ".join(content["annotations"][0])
        refuse(f"annotations without captions ({found[:80]})", "; an instances_ or keypoints_ file?")
