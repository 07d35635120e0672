"""Flickr30k: the pipe-separated CSV with its broken row, the token file, and both forms of split lists.

Young et al. (2014), "From image descriptions to visual denotations". 31,783 images; the split that papers
report on (29,000 / 1,014 / 1,000) is Karpathy's, in `dataset_flickr30k.json` or in lists made from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from captioning.datasets import checks, disk
from captioning.datasets.base import BaseDatasetConfig, CaptionFile, Guide
from captioning.datasets.checks import Entry, LabelledCaptions
from captioning.datasets.flickr import KARPATHY_CAPTIONS, read_tokens, unsplit_records
from captioning.datasets.splits import unofficial_splits
from captioning.errors import UserError
from captioning.records import Collection, ImageRecord, Skip
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
KARPATHY_FILE = "dataset_flickr30k.json"
LISTS = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}

ROW = re.compile(r"([^|]+?)\s*\|\s*(\d+)\s*(?:\|(.*)|\s(.*))", re.DOTALL)
"""`NAME| NUMBER| CAPTION`, also without the second pipe, as in one row of 2199200615.jpg."""

GUIDE = Guide(
    title="Flickr30k: 31,014 photographs with 5 captions each (Young et al. 2014)",
    layout="""\
flickr30k_images/ (or flickr30k-images/, images/)   the photographs
results.csv                                         captions; or results_20130124.token
dataset_flickr30k.json                              Karpathy's splits (`--download splits`); or train.txt,
                                                    val.txt and test.txt, one name a line""",
    source="""\
- original release: https://forms.illinois.edu/sec/229675 sends links to flickr30k-images.tar.gz (4.4 GB) and
  flickr30k.tar.gz (results_20130124.token).
- CSV copy: the Kaggle data set hsankesara/flickr-image-dataset (flickr30k_images/ with results.csv).""",
    licence="for research and teaching; the authors distribute it on request only, so it is not downloaded here",
    downloads={"splits": KARPATHY_CAPTIONS},
    image_counts={"train": 29_000, "val": 1014, "test": 1000},
)


@dataclass(frozen=True, kw_only=True)
class Flickr30kConfig(BaseDatasetConfig):
    """Flickr30k. File names are relative to `root`; files set to null or "auto" are searched for.

    `splits: official` reads Karpathy's `dataset_flickr30k.json` or, if that is absent, the lists
    `train.txt`, `val.txt` and `test.txt` (one name a line, with or without `.jpg`). `splits: random` draws
    1,000 images each for val and test by `split_seed`; no published figure uses such a split. `images:
    null` loads captions alone.
    """

    guide: ClassVar[Guide] = GUIDE
    reference_formats: ClassVar[str] = "Flickr30k's results.csv"

    kind: Literal["flickr30k"] = "flickr30k"
    root: str = "data/flickr30k"
    images: str | None = disk.AUTO
    captions: str | None = None
    splits: Literal["official", "random"] = "official"

    def load(self) -> Collection:
        """Records of Flickr30k; image ids are file names. Images in no split are left out.

        Raises:
            UserError: a file is missing or broken, or there are no splits and `splits` is not `random`.
        """
        disk.require_root(self.root, self.kind)
        images = disk.ImageFolder(disk.find_image_folder(self.root, self.images, IMAGE_FOLDERS))
        path = disk.find_caption_file(
            self.root,
            self.captions,
            CAPTION_FILES,
            folders=TEXT_FOLDERS,
            advice="`captioning prepare flickr30k --needs` explains where to get them",
        )
        captions, skipped = read_tokens(path) if path.endswith(".token") else read_piped(path)
        if self.splits == "random":
            drawn = unofficial_splits(list(captions), seed=self.split_seed, title="Flickr30k")
            splits = Splits([(name, drawn[name]) for name in captions], dict.fromkeys(drawn.values(), path))
        else:
            splits = read_splits(self.root)
        entries = (
            Entry(name, name, split, captions.get(name, ()), f"{splits.files[split]}: entry {number}")
            for number, (name, split) in enumerate(splits.images)
        )
        return checks.refuse_empty_splits(checks.build_records(entries, images, skipped), splits.files)

    def published_counts(self, records: Sequence[ImageRecord]) -> Mapping[str, int]:
        return {} if self.splits == "random" else self.guide.image_counts

    @classmethod
    def read_references(cls, file: CaptionFile) -> Collection | None:
        if not file.first_line.startswith("image_name|"):
            return None
        if disk.find_file(file.root, (KARPATHY_FILE, *LISTS.values()), folders=TEXT_FOLDERS):
            return cls(root=file.root, images=None, captions=file.name).load()
        return unsplit_records(file, *read_piped(file.path))


def read_piped(path: str) -> tuple[LabelledCaptions, list[Skip]]:
    """Captions of the pipe-separated CSV, `image_name| comment_number| comment`, without quotes.

    The row that lacks its second pipe is read like the others; rows of another form are skipped.

    Raises:
        UserError: the file is unreadable, has another header, or a caption's number occurs twice.
    """
    captions: LabelledCaptions = {}
    skipped: list[Skip] = []
    labels: list[tuple[str, str]] = []
    lines = read_text(path).split("\n")
    header = [field.strip() for field in lines[0].split("|")]
    if header != ["image_name", "comment_number", "comment"]:
        raise UserError(
            f"{path}: expected the header image_name| comment_number| comment, found {lines[0][:80]!r}; "
            "correct the first line"
        )
    for number, line in enumerate(lines[1:], 2):
        if match := ROW.fullmatch(line):
            name, comment_number, caption, caption_without_pipe = match.groups()
            text = caption or caption_without_pipe or ""
            captions.setdefault(name, []).append((f"{path}: line {number}", text))
            labels.append((name, comment_number))
        elif line.strip():
            skipped.append(Skip(f"{path}: line {number}", "not image_name| comment_number| comment"))
    checks.require_unique(labels, where=path, what="captions (image name and number)")
    return captions, skipped


class Splits(NamedTuple):
    """(image name, split) pairs in file order, and for each split the file that defines it."""

    images: list[tuple[str, str]]
    files: dict[str, str]


def read_splits(root: str) -> Splits:
    """The splits of Karpathy's file, or else of the lists; the list of test images is optional."""
    path = disk.find_file(root, (KARPATHY_FILE,), folders=TEXT_FOLDERS)
    if path is not None:
        images = [
            (_string(path, entry, "filename"), _string(path, entry, "split")) for entry in _entries(path)
        ]
        return Splits(images, dict.fromkeys((split for _, split in images), path))
    paths = {split: disk.find_file(root, (name,), folders=TEXT_FOLDERS) for split, name in LISTS.items()}
    files = {split: name for split, name in paths.items() if name is not None}
    if not {"train", "val"} <= files.keys():
        raise UserError(
            f"{root}: no splits found; add {KARPATHY_FILE} (`captioning prepare karpathy` downloads it) or "
            f"{', '.join(LISTS.values())}, or set `splits: random` for a split that no published figure uses"
        )
    return Splits(
        [
            (name if name.endswith(".jpg") else f"{name}.jpg", split)
            for split, list_path in files.items()
            for name in checks.read_names(list_path)
        ],
        files,
    )


def _entries(path: str) -> list[Any]:
    content = read_json(path)
    if not (isinstance(content, dict) and isinstance(content.get("images"), list)):
        raise UserError(f"{path}: expected Karpathy's format, an object with a list of images")
    return content["images"]


def _string(path: str, entry: Any, key: str) -> str:
    if not (isinstance(entry, dict) and isinstance(entry.get(key), str)):
        raise UserError(f"{path}: expected images with {key!r}, found {str(entry)[:80]}")
    return str(entry[key])
