"""Karpathy's JSON files with the standard splits of COCO, Flickr8k and Flickr30k.

Karpathy and Fei-Fei (2015), "Deep visual-semantic alignments for generating image descriptions". Papers report
on these splits; COCO's `restval` is added to `train`, which makes 113,287 / 5,000 / 5,000 images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from captioning.datasets import checks, disk, flickr8k, flickr30k
from captioning.datasets.base import GB, BaseDatasetConfig, CaptionFile, Download, Guide, RemoteFile
from captioning.datasets.checks import Entry
from captioning.datasets.coco import COCO_URL
from captioning.datasets.flickr import KARPATHY_CAPTIONS
from captioning.errors import UserError
from captioning.records import Collection, ImageRecord
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
COCO_COUNTS = {"train": 113_287, "val": 5000, "test": 5000}

GUIDE = Guide(
    title="Karpathy's splits of COCO, Flickr8k and Flickr30k (Karpathy and Fei-Fei 2015)",
    layout="""\
caption_datasets/dataset_coco.json   or dataset_flickr8k.json, dataset_flickr30k.json (`--download captions`)
train2014/ and val2014/              COCO's photographs (`--download train,val`); train2017/ and val2017/
                                     contain the same photographs and work as well
images/ ...                          Flickr's photographs: see `captioning prepare flickr8k --needs` and
                                     `captioning prepare flickr30k --needs`""",
    source="https://cs.stanford.edu/people/karpathy/deepimagesent/ and https://cocodataset.org",
    licence="the terms of COCO (captions CC BY 4.0, photographs under the terms of Flickr), Flickr8k and Flickr30k",
    downloads={
        "captions": KARPATHY_CAPTIONS,
        "val": Download(
            file=RemoteFile(
                url=f"{COCO_URL}/zips/val2014.zip",
                size=6_645_013_297,
                sha256="fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
            ),
            content="40,504 photographs of val2014",
            max_bytes=9 * GB,
            suffix=".jpg",
        ),
        "train": Download(
            file=RemoteFile(
                url=f"{COCO_URL}/zips/train2014.zip",
                size=13_510_573_713,
                sha256="ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
            ),
            content="82,783 photographs of train2014",
            max_bytes=18 * GB,
            suffix=".jpg",
        ),
    },
)


@dataclass(frozen=True, kw_only=True)
class KarpathyConfig(BaseDatasetConfig):
    """One of Karpathy's three files, named by `captions` or the only one found under `root`.

    COCO's photographs are searched for in `train2014/` and `val2014/`, then in `train2017/` and `val2017/` (the
    same photographs under other names), under `root` or `root/images`; Flickr's in the usual folders.
    `restval: false` leaves out COCO's 30,504 restval images. `images: null` loads captions alone.
    """

    guide: ClassVar[Guide] = GUIDE
    reference_formats: ClassVar[str] = "one of Karpathy's JSON files"

    kind: Literal["karpathy"] = "karpathy"
    root: str = "data/coco"
    images: str | None = disk.AUTO
    captions: str | None = None
    restval: bool = True

    def load(self) -> Collection:
        """Records of the file; image ids are COCO's numbers, or file names for Flickr.

        Raises:
            UserError: a file or folder is missing, the file has another format, or a sentence id occurs twice.
        """
        disk.require_root(self.root, self.kind)
        path = _find_captions(self)
        content = read_json(path)
        _check_format(path, content)
        images = [image for image in content["images"] if self.restval or image["split"] != RESTVAL]
        sentence_ids = [sentence.get("sentid") for image in images for sentence in image["sentences"]]
        checks.require_unique(
            (sentence_id for sentence_id in sentence_ids if sentence_id is not None),
            where=path,
            what="sentence ids",
        )
        folder, names = _find_images(self, path, images)
        return checks.build_records(_entries(path, images, names), folder)

    def published_counts(self, records: Sequence[ImageRecord]) -> Mapping[str, int]:
        """The counts of COCO, Flickr8k or Flickr30k, recognised by the type of the ids and the number of images."""
        if records and isinstance(records[0].image_id, int):
            return COCO_COUNTS
        return (flickr30k if len(records) > 10_000 else flickr8k).GUIDE.image_counts

    @classmethod
    def read_references(cls, file: CaptionFile) -> Collection | None:
        if not (file.is_json and re.search(r'"sentences"\s*:\s*\[', file.head)):
            return None
        return cls(root=file.root, images=None, captions=file.name).load()


def _find_captions(config: KarpathyConfig) -> str:
    if config.captions is not None:
        return os.path.join(config.root, config.captions)
    paths = [disk.find_file(config.root, (name,), folders=TEXT_FOLDERS) for name in CAPTION_FILES]
    found = [path for path in paths if path is not None]
    if not found:
        raise UserError(
            f"{config.root}: none of {', '.join(CAPTION_FILES)} found; "
            "`captioning prepare karpathy --download captions` downloads them"
        )
    if len(found) > 1:
        raise UserError(f"{config.root}: {' and '.join(found)} exist; name one of them as `captions`")
    return found[0]


def _entries(path: str, images: list[dict[str, Any]], names: list[str]) -> Iterator[Entry]:
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        captions = [
            (
                f"{path}: sentence {sentence.get('sentid', f'{index} of entry {number}')}",
                sentence.get("raw", checks.MISSING),
            )
            for index, sentence in enumerate(image["sentences"])
        ]
        split = "train" if image["split"] == RESTVAL else image["split"]
        image_id = image.get("cocoid", image["filename"])
        yield Entry(image_id, name, split, captions, f"{path}: images entry {number}")


def _find_images(
    config: KarpathyConfig, path: str, images: list[dict[str, Any]]
) -> tuple[disk.ImageFolder, list[str]]:
    """The folder of the photographs, and the name of each in it."""
    names = [os.path.join(image.get("filepath", ""), image["filename"]) for image in images]
    if config.images is None:
        return disk.ImageFolder(None), names
    if not any("filepath" in image for image in images):
        return disk.ImageFolder(disk.find_image_folder(config.root, config.images, IMAGE_FOLDERS)), names
    bases = (".", "images") if config.images == disk.AUTO else (config.images,)
    for year in ("2014", "2017"):
        for base in bases:
            folder = os.path.normpath(os.path.join(config.root, base))
            if os.path.isdir(os.path.join(folder, f"val{year}")):
                image_folder = disk.ImageFolder(folder)
                return image_folder, names if year == "2014" else _names_of_2017(image_folder, path, images)
    raise disk.no_images(
        config.root, [os.path.normpath(f"{base}/val{year}") + "/" for year in (2014, 2017) for base in bases]
    )


def _names_of_2017(folder: disk.ImageFolder, path: str, images: list[dict[str, Any]]) -> list[str]:
    """The names in COCO 2017 of the photographs of 2014: without a prefix, and most of val moved to train."""
    names: list[str] = []
    for number, image in enumerate(images):
        if not isinstance(image.get("cocoid"), int):
            raise UserError(
                f"{path}: images entry {number} has no cocoid, which the file names of COCO 2017 are made of"
            )
        name = f"{image['cocoid']:012d}.jpg"
        in_val = not folder.missing(folder.path(f"val2017/{name}", entry=name))
        names.append(f"{'val2017' if in_val else 'train2017'}/{name}")
    return names


def _check_format(path: str, content: Any) -> None:
    """Raise UserError if `content` is not Karpathy's JSON."""

    def error(found: str, hint: str = "") -> UserError:
        return UserError(
            f"{path}: expected Karpathy's format, "
            '{"images": [{"filename", "split", "sentences": [{"raw"}]}]}; '
            f"found {found}{hint}"
        )

    if not isinstance(content, dict):
        raise error(f"{disk.json_type(content)} at the root")
    if not isinstance(content.get("images"), list):
        raise error(f"the keys {list(content)[:8]}")
    hint = "; this looks like COCO's own annotations: use kind: coco" if "annotations" in content else ""
    for number, image in enumerate(content["images"]):
        if not (
            isinstance(image, dict)
            and isinstance(image.get("filename"), str)
            and isinstance(image.get("filepath", ""), str)
            and isinstance(image.get("split"), str)
            and type(image.get("cocoid", 0)) in (int, str)
            and isinstance(image.get("sentences"), list)
            and all(
                isinstance(sentence, dict) and type(sentence.get("sentid", 0)) in (int, str, type(None))
                for sentence in image["sentences"]
            )
        ):
            raise error(f"images entry {number}: {str(image)[:80]}", hint)
