"""Flickr8k, in the layout of the original release and in that of its CSV copies.

Hodosh, Young and Hockenmaier (2013), "Framing image description as a ranking task".

| layout | captions | splits |
|---|---|---|
| original release | `Flickr8k.token.txt`: `NAME.jpg#0<TAB>caption` | `Flickr_8k.{train,dev,test}Images.txt` |
| CSV copy | `captions.txt`: `image,caption`, quoted where needed | none: add the lists, or `splits: random` |
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from captioning.datasets import checks, disk
from captioning.datasets.base import BaseDatasetConfig, CaptionFile, Guide
from captioning.datasets.checks import Entry, LabelledCaptions
from captioning.datasets.flickr import KARPATHY_CAPTIONS, is_token_line, read_tokens, unsplit_records
from captioning.datasets.splits import unofficial_splits
from captioning.datasets.tables import read_csv, refuse_other_separator
from captioning.errors import UserError
from captioning.records import Collection, ImageRecord, Skip
from captioning.utils.files import read_text

IMAGE_FOLDERS = ("images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset")
CAPTION_FILES = ("Flickr8k.token.txt", "captions.txt")
TEXT_FOLDERS = ("", "Flickr8k_text")
LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}

GUIDE = Guide(
    title="Flickr8k: 8,000 photographs with 5 captions each (Hodosh et al. 2013)",
    layout="""\
images/ (or Images/, Flicker8k_Dataset/)   the photographs
Flickr8k.token.txt                         captions of the original release; or captions.txt, the CSV copy
Flickr_8k.trainImages.txt                  official splits: 6,000 images,
Flickr_8k.devImages.txt                    1,000 images,
Flickr_8k.testImages.txt                   1,000 images (optional)""",
    source="""\
- original release: https://forms.illinois.edu/sec/1713398 sends links to Flickr8k_Dataset.zip (1.1 GB,
  photographs) and Flickr8k_text.zip (2 MB, captions and lists); unpack both into the folder.
- CSV copy: the Kaggle data set adityajn105/flickr8k (Images/ and captions.txt). It has no split lists: add
  those of Flickr8k_text.zip, or use `kind: karpathy` with its dataset_flickr8k.json (`--download splits`), or
  `splits=random`; scores on random splits do not compare with published ones.""",
    licence="for research and teaching; the authors distribute it on request only, so it is not downloaded here",
    downloads={"splits": KARPATHY_CAPTIONS},
    image_counts={"train": 6000, "val": 1000, "test": 1000},
)


@dataclass(frozen=True, kw_only=True)
class Flickr8kConfig(BaseDatasetConfig):
    """Flickr8k. File names are relative to `root`; files set to null or "auto" are searched for.

    `splits: official` reads the lists of the release; the list of test images is optional.
    `splits: random` draws 1,000 images each for val and test (an eighth each if there are fewer than
    8,000) by `split_seed`, for copies without lists; no published figure uses such a split. `images: null`
    loads captions alone.
    """

    guide: ClassVar[Guide] = GUIDE
    reference_formats: ClassVar[str] = "Flickr8k.token.txt or captions.txt"

    kind: Literal["flickr8k"] = "flickr8k"
    root: str = "data/flickr8k"
    images: str | None = disk.AUTO
    captions: str | None = None
    splits: Literal["official", "random"] = "official"
    train_list: str | None = None
    dev_list: str | None = None
    test_list: str | None = None

    def load(self) -> Collection:
        """Records of Flickr8k; image ids are file names. Images in no list are not part of the data set.

        Raises:
            UserError: a file is missing or broken, or there are no lists and `splits` is not `random`.
        """
        disk.require_root(self.root, self.kind)
        images = disk.ImageFolder(disk.find_image_folder(self.root, self.images, IMAGE_FOLDERS))
        path = disk.find_caption_file(
            self.root,
            self.captions,
            CAPTION_FILES,
            folders=TEXT_FOLDERS,
            advice="`captioning prepare flickr8k --needs` explains where to get them",
        )
        captions, skipped = _read_captions(path)
        if self.splits == "random":
            splits = unofficial_splits(list(captions), seed=self.split_seed, title="Flickr8k")
            entries = [
                Entry(name, name, splits[name], texts, f"{path}: entry {number}")
                for number, (name, texts) in enumerate(captions.items(), 1)
            ]
            return checks.build_records(entries, images, skipped)
        lists = _find_lists(self)
        entries = [
            Entry(name, name, split, captions.get(name, ()), f"{list_path}: entry {number}")
            for split, list_path in lists.items()
            for number, name in enumerate(checks.read_names(list_path), 1)
        ]
        return checks.refuse_empty_splits(checks.build_records(entries, images, skipped), lists)

    def published_counts(self, records: Sequence[ImageRecord]) -> Mapping[str, int]:
        return {} if self.splits == "random" else self.guide.image_counts

    @classmethod
    def read_references(cls, file: CaptionFile) -> Collection | None:
        if file.is_json or file.is_json_lines:
            return None
        if not is_token_line(file.first_line) and file.columns != ["image", "caption"]:
            return None
        if disk.find_file(file.root, tuple(LISTS.values()), folders=TEXT_FOLDERS):
            return cls(root=file.root, images=None, captions=file.name).load()
        return unsplit_records(file, *_read_captions(file.path))


def _read_captions(path: str) -> tuple[LabelledCaptions, list[Skip]]:
    first_line = read_text(path).partition("\n")[0]
    return read_tokens(path) if is_token_line(first_line) else read_pairs(path)


def _find_lists(config: Flickr8kConfig) -> dict[str, str]:
    """Split -> path of its list, as configured or found; test may be absent."""
    configured = {"train": config.train_list, "val": config.dev_list, "test": config.test_list}
    paths = {
        split: os.path.join(config.root, name)
        if name is not None
        else disk.find_file(config.root, (LISTS[split],), folders=TEXT_FOLDERS)
        for split, name in configured.items()
    }
    absent = [LISTS[split] for split in ("train", "val") if paths[split] is None]
    if absent:
        raise UserError(
            f"{config.root}: {' and '.join(absent)} not found; add the official lists (they come with "
            "Flickr8k.token.txt), or set `splits: random` for a seeded split that no published figure uses"
        )
    return {split: path for split, path in paths.items() if path is not None}


def read_pairs(path: str) -> tuple[LabelledCaptions, list[Skip]]:
    """Captions of a CSV file with the header `image,caption`, and the rows of another form.

    Further commas belong to the caption, so copies written without quotes are read correctly.

    Raises:
        UserError: the file is unreadable, has another header, or a quote is unclosed.
    """
    captions: LabelledCaptions = {}
    skipped: list[Skip] = []
    rows = read_csv(path)
    _, header = next(rows, (1, []))
    refuse_other_separator(path, header)
    if [field.strip().lower() for field in header] != ["image", "caption"]:
        raise UserError(
            f"{path}: expected the header image,caption, found {','.join(header)[:80]!r}; correct the first line"
        )
    for number, (name, *rest) in rows:
        if rest and name.strip():
            captions.setdefault(name.strip(), []).append((f"{path}: line {number}", ",".join(rest)))
        else:
            skipped.append(Skip(f"{path}: line {number}", "not image,caption"))
    return captions, skipped
