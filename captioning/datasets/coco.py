"""COCO's own annotation files, `captions_*.json`, with COCO's splits.

Chen et al. (2015), "Microsoft COCO Captions: Data Collection and Evaluation Server". pycocotools indexes the
files but checks nothing, so the format is checked here.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pycocotools.coco import COCO

from captioning.datasets import checks, disk
from captioning.datasets.base import (
    GB,
    UNSPLIT,
    BaseDatasetConfig,
    CaptionFile,
    Download,
    Guide,
    RemoteFile,
)
from captioning.datasets.checks import Entry
from captioning.errors import UserError
from captioning.records import Collection, ImageRecord, Skip
from captioning.utils.files import read_json

COCO_URL = "http://images.cocodataset.org"

# sizes and sha256 as recorded by TensorFlow Datasets (url_checksums/coco_captions.txt)
GUIDE = Guide(
    title="COCO 2017 captions, COCO's own splits (Chen et al. 2015)",
    layout="""\
annotations/captions_train2017.json   `--download captions`
annotations/captions_val2017.json
train2017/                            118,287 photographs (`--download train`)
val2017/                              5,000 photographs (`--download val`)""",
    source="""\
https://cocodataset.org. For COCO 2014 name its files:
train=annotations/captions_train2014.json val=annotations/captions_val2014.json""",
    licence="captions CC BY 4.0, photographs under the terms of Flickr",
    downloads={
        "captions": Download(
            file=RemoteFile(
                url=f"{COCO_URL}/annotations/annotations_trainval2017.zip",
                size=252_907_541,
                sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            ),
            content="captions of train2017 and val2017",
            max_bytes=3 * GB,
            prefix="annotations/captions_",
            suffix=".json",
        ),
        "val": Download(
            file=RemoteFile(
                url=f"{COCO_URL}/zips/val2017.zip",
                size=815_585_330,
                sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            ),
            content="5,000 photographs of val2017",
            max_bytes=1 * GB,
            suffix=".jpg",
        ),
        "train": Download(
            file=RemoteFile(
                url=f"{COCO_URL}/zips/train2017.zip",
                size=19_336_861_798,
                sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            ),
            content="118,287 photographs of train2017",
            max_bytes=25 * GB,
            suffix=".jpg",
        ),
    },
    image_counts={"train": 118_287, "val": 5000},
)


@dataclass(frozen=True, kw_only=True)
class CocoConfig(BaseDatasetConfig):
    """COCO with its own splits: an annotation file each, or null for a split without one, relative to `root`.

    The photographs of `captions_val2017.json` are searched for in `val2017/`, `images/val2017/` and
    `images/`, or in `IMAGES/val2017/` and `IMAGES/` if `images` names a folder. `images: null` loads
    captions alone.
    """

    guide: ClassVar[Guide] = GUIDE
    reference_formats: ClassVar[str] = "COCO's captions_*.json"

    kind: Literal["coco"] = "coco"
    root: str = "data/coco"
    images: str | None = disk.AUTO
    train: str | None = "annotations/captions_train2017.json"
    val: str | None = "annotations/captions_val2017.json"
    test: str | None = None

    def load(self) -> Collection:
        """Records of the named annotation files; image ids are COCO's numbers.

        Raises:
            UserError: a file or folder is missing, a file has another format, or an id occurs twice.
        """
        disk.require_root(self.root, self.kind)
        names = {"train": self.train, "val": self.val, "test": self.test}
        files = {split: os.path.join(self.root, name) for split, name in names.items() if name is not None}
        if not files:
            raise UserError(f"{self.root}: no annotation file is named; set train, val or test")
        for split, path in files.items():
            if not os.path.isfile(path):
                raise UserError(f"{path}: no such file; add it, or set `{split}: null` to do without")
        records: list[ImageRecord] = []
        skipped: list[Skip] = []
        for split, path in files.items():
            images = disk.ImageFolder(_find_images(self, path))
            collection = checks.build_records(_entries(path, split, skipped), images)
            records += collection.records
            skipped += collection.skipped
        return checks.refuse_empty_splits(Collection(records, skipped), files)

    def published_counts(self, records: Sequence[ImageRecord]) -> Mapping[str, int]:
        """The counts of COCO 2017 for the splits whose file is of 2017."""
        files = {"train": self.train, "val": self.val}
        counts = self.guide.image_counts
        return {split: count for split, count in counts.items() if "2017" in (files[split] or "")}

    @classmethod
    def read_references(cls, file: CaptionFile) -> Collection | None:
        if not file.is_json:
            return None
        config = cls(root=file.root, images=None, train=None, val=None, test=file.name)
        records, skipped = config.load()
        return Collection(
            [ImageRecord(r.image_id, r.path, r.captions, UNSPLIT) for r in records],
            [skip._replace(split=UNSPLIT) for skip in skipped],
        )


def _find_images(config: CocoConfig, path: str) -> str | None:
    """The folder of the photographs that the annotation file at `path` describes."""
    name = os.path.basename(path).removesuffix(".json").removeprefix("captions_")
    if config.images in (None, disk.AUTO):
        return disk.find_image_folder(config.root, config.images, (name, f"images/{name}", "images"))
    return disk.find_image_folder(config.root, disk.AUTO, (f"{config.images}/{name}", str(config.images)))


def _entries(path: str, split: str, skipped: list[Skip]) -> Iterator[Entry]:
    """Every image with its captions; captions of unknown images are added to `skipped`."""
    index = load_index(path)
    for image_id, entries in index.imgToAnns.items():
        if image_id not in index.imgs:
            reason = f"caption without image: image {image_id} is not in the file"
            skipped.extend(Skip(_label(path, annotation), reason, split) for annotation in entries)
    for number, image in enumerate(index.imgs.values()):
        entries = index.imgToAnns.get(image["id"], ())
        captions = [
            (_label(path, annotation), annotation.get("caption", checks.MISSING)) for annotation in entries
        ]
        yield Entry(image["id"], image["file_name"], split, captions, f"{path}: images entry {number}")


def _label(path: str, annotation: dict[str, Any]) -> str:
    return f"{path}: annotation {annotation['id']}"


def load_index(path: str) -> COCO:
    """The annotation file, checked and indexed by pycocotools, whose printed messages are suppressed.

    Raises:
        UserError: broken JSON, a file that has no caption annotations, or an id that occurs twice.
    """
    content = read_json(path)
    _check_format(path, content)
    images, annotations = content["images"], content["annotations"]
    checks.require_unique((image["id"] for image in images), where=path, what="image ids")
    checks.require_unique((entry["id"] for entry in annotations), where=path, what="annotation ids")
    index = COCO()
    index.dataset = {"images": images, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


def _check_format(path: str, content: Any) -> None:
    """Raise UserError if `content` is not COCO's JSON of caption annotations."""

    def error(found: str, hint: str = "") -> UserError:
        return UserError(
            f'{path}: expected COCO caption annotations, {{"images": [...], "annotations": [...]}}; '
            f"found {found}{hint}"
        )

    if not isinstance(content, dict):
        first = content[0] if isinstance(content, list) and content else None
        is_result = isinstance(first, dict) and "image_id" in first and "caption" in first
        hint = "; these look like results (predictions), not annotations" if is_result else ""
        raise error(f"{disk.json_type(content)} at the root", hint)
    for key in ("images", "annotations"):
        if not isinstance(content.get(key), list):
            first_image = next(iter(content["images"] or ()), None) if key == "annotations" else None
            is_karpathy = isinstance(first_image, dict) and "sentences" in first_image
            hint = "; this looks like one of Karpathy's files: use kind: karpathy" if is_karpathy else ""
            found = f"{key}: {disk.json_type(content[key])}" if key in content else f"no {key!r}"
            raise error(found, hint)
    for number, image in enumerate(content["images"]):
        if not (
            isinstance(image, dict)
            and isinstance(image.get("file_name"), str)
            and type(image.get("id")) in (int, str)
        ):
            raise error(f'images entry {number} without "id" or "file_name": {str(image)[:80]}')
    annotations = content["annotations"]
    for number, annotation in enumerate(annotations):
        if not (
            isinstance(annotation, dict)
            and type(annotation.get("id")) in (int, str)
            and type(annotation.get("image_id")) in (int, str)
        ):
            raise error(f'annotations entry {number} without "id" or "image_id": {str(annotation)[:80]}')
    if annotations and not any("caption" in annotation for annotation in annotations):
        raise error(
            f"annotations without captions ({', '.join(annotations[0])[:80]})",
            "; an instances_ or keypoints_ file?",
        )
