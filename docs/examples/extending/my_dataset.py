"""A data set: images in a folder and a tab-separated file of captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from captioning.datasets.base import BaseDatasetConfig, Guide
from captioning.errors import UserError
from captioning.records import Collection, ImageRecord, Skip


@dataclass(frozen=True, kw_only=True)
class TabsConfig(BaseDatasetConfig):
    """`root` contains `captions.tsv` (file name, split, captions) and the images."""

    guide: ClassVar[Guide] = Guide(
        title="images with tab-separated captions",
        layout="captions.tsv   one image a line: FILE<tab>SPLIT<tab>CAPTION<tab>CAPTION ...\n*.png, *.jpg   the images",
        source="your own images and captions",
        licence="your own",
    )
    kind: Literal["my_dataset:TabsConfig"] = "my_dataset:TabsConfig"
    root: str = "data/tabs"

    def load(self) -> Collection:
        """The records, and the lines that are skipped; checks common to all data sets follow in `datasets.load`."""
        path = Path(self.root, "captions.tsv")
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; captioning prepare {self.kind} --needs describes the folder"
            )
        records, skipped = [], []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            name, split, *captions = line.split("\t")
            if not captions:
                skipped.append(Skip(f"{path}: line {number}", "image without captions"))
                continue
            records.append(ImageRecord(name, str(path.parent / name), tuple(captions), split))
        return Collection(records, skipped)
