"""What each public data set needs, where it comes from, how large it is. Words only: does nothing.

Sizes and sha256 of COCO's and Karpathy's files are those that TensorFlow Datasets records for them
(`url_checksums/coco_captions.txt`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from captioning.datasets import CocoConfig, DatasetConfig, Flickr8kConfig, Flickr30kConfig, KarpathyConfig
from captioning.datasets.prepare.download import Source
from captioning.records import ImageRecord

COCO = "http://images.cocodataset.org"
GB = 10**9


@dataclass(frozen=True, kw_only=True)
class Part:
    """An archive that may be downloaded. Entries whose names start so and end so are unpacked to `to`.

    `most_bytes` bounds what all its entries may take.
    """

    source: Source
    most_bytes: int
    holds: str
    start: str = ""
    end: str = ""
    to: str = "."

    def wanted(self, name: str) -> bool:
        return name.startswith(self.start) and name.endswith(self.end)


@dataclass(frozen=True, kw_only=True)
class Guide:
    """A data set in words. `layout`: what its folder should hold; `counts`: a split's published images."""

    title: str
    layout: str
    source: str
    parts: Mapping[str, Part] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


CAPTIONS_2017 = Part(
    source=Source(
        url=f"{COCO}/annotations/annotations_trainval2017.zip",
        size=252_907_541,
        sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
    most_bytes=3 * GB,
    start="annotations/captions_",
    end=".json",
    holds="captions of train2017 and val2017",
)
TRAIN_2017 = Part(
    source=Source(
        url=f"{COCO}/zips/train2017.zip",
        size=19_336_861_798,
        sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    ),
    most_bytes=25 * GB,
    end=".jpg",
    holds="118,287 photographs of train2017",
)
VAL_2017 = Part(
    source=Source(
        url=f"{COCO}/zips/val2017.zip",
        size=815_585_330,
        sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
    most_bytes=1 * GB,
    end=".jpg",
    holds="5,000 photographs of val2017",
)
TRAIN_2014 = Part(
    source=Source(
        url=f"{COCO}/zips/train2014.zip",
        size=13_510_573_713,
        sha256="ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
    ),
    most_bytes=18 * GB,
    end=".jpg",
    holds="82,783 photographs of train2014",
)
VAL_2014 = Part(
    source=Source(
        url=f"{COCO}/zips/val2014.zip",
        size=6_645_013_297,
        sha256="fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
    ),
    most_bytes=9 * GB,
    end=".jpg",
    holds="40,504 photographs of val2014",
)
KARPATHY = Part(
    source=Source(
        url="https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
        size=36_745_453,
        sha256="4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
    ),
    most_bytes=1 * GB,
    start="dataset_",
    end=".json",
    to="caption_datasets",
    holds="dataset_coco.json, dataset_flickr8k.json and dataset_flickr30k.json: captions and splits",
)

SHAPES = Guide(
    title="shapes: coloured shapes drawn by this program, with captions from a grammar",
    layout="drawn on first use; there is nothing to fill in",
    source="none",
)
FLICKR8K = Guide(
    title="Flickr8k: 8,000 photographs with 5 captions each (Hodosh et al. 2013)",
    layout="""\
images/ (or Images/, Flicker8k_Dataset/)   the photographs
Flickr8k.token.txt                         captions, original release; or captions.txt, the CSV copy
Flickr_8k.trainImages.txt                  official splits: 6,000 ...
Flickr_8k.devImages.txt                    ... 1,000 ...
Flickr_8k.testImages.txt                   ... 1,000 (may be absent)""",
    source="""\
It may not be downloaded unasked: its authors hand it out for research and teaching.
- original release: https://forms.illinois.edu/sec/1713398 sends links to Flickr8k_Dataset.zip (1.1 GB,
  photographs) and Flickr8k_text.zip (2 MB, captions and lists); unpack both into the folder.
- CSV copy: the Kaggle data set adityajn105/flickr8k (Images/ and captions.txt). It has no split lists: add
  those of Flickr8k_text.zip, or use `kind: karpathy` with its dataset_flickr8k.json (`--download splits`), or
  `splits=random`, whose figures compare with no published ones.""",
    parts={"splits": KARPATHY},
    counts={"train": 6000, "val": 1000, "test": 1000},
)
FLICKR30K = Guide(
    title="Flickr30k: 31,014 photographs with 5 captions each (Young et al. 2014)",
    layout="""\
flickr30k_images/ (or flickr30k-images/, images/)   the photographs
results.csv                                         captions; or results_20130124.token
dataset_flickr30k.json                              Karpathy's splits (`--download splits`); or train.txt,
                                                    val.txt and test.txt, a name a line""",
    source="""\
It may not be downloaded unasked: its authors hand it out for research and teaching.
- original release: https://forms.illinois.edu/sec/229675 sends links to flickr30k-images.tar.gz (4.4 GB) and
  flickr30k.tar.gz (results_20130124.token).
- CSV copy: the Kaggle data set hsankesara/flickr-image-dataset (flickr30k_images/ with results.csv).""",
    parts={"splits": KARPATHY},
    counts={"train": 29_000, "val": 1014, "test": 1000},
)
COCO_2017 = Guide(
    title="COCO 2017 captions, COCO's own splits (Chen et al. 2015)",
    layout="""\
annotations/captions_train2017.json   `--download captions`
annotations/captions_val2017.json
train2017/                            118,287 photographs (`--download train`)
val2017/                              5,000 photographs (`--download val`)""",
    source="""\
https://cocodataset.org: annotations CC BY 4.0, photographs under the terms of Flickr. For COCO 2014 name its
files: train=annotations/captions_train2014.json val=annotations/captions_val2014.json""",
    parts={"captions": CAPTIONS_2017, "val": VAL_2017, "train": TRAIN_2017},
    counts={"train": 118_287, "val": 5000},
)
KARPATHY_COCO = Guide(
    title="Karpathy's splits of COCO, Flickr8k and Flickr30k (Karpathy and Fei-Fei 2015)",
    layout="""\
caption_datasets/dataset_coco.json   or dataset_flickr8k.json, dataset_flickr30k.json (`--download captions`)
train2014/ and val2014/              COCO's photographs (`--download train,val`); train2017/ and val2017/
                                     serve as well
images/ ...                          for Flickr: as `prepare.py flickr8k` and `prepare.py flickr30k` say""",
    source="https://cs.stanford.edu/people/karpathy/deepimagesent/ and https://cocodataset.org",
    parts={"captions": KARPATHY, "val": VAL_2014, "train": TRAIN_2014},
)
FOLDER = Guide(
    title="a folder of your own photographs",
    layout="""\
images/        the photographs (or the folder itself)
captions.csv   file_name,caption,split a line, the last column optional; an image with several captions has
               several lines. Or captions.jsonl: {"file_name": ..., "caption": ..., "split": ...}""",
    source="you",
)
SHARDS = Guide(
    title="shards: tars of images, or of stored features, with their captions",
    layout="""\
index.json          the shards, their lengths and sha256
train-000000.tar    webdataset tars: KEY.jpg (or KEY.npy) and KEY.json
train-000000.jsonl  a line a record: captions, and where in the tar its image lies""",
    source="""\
`prepare.py shard KIND --to FOLDER` writes them of any other data set; `prepare.py shard --adopt FOLDER`
lists tars that are there: of webdataset, or img2dataset.""",
)
GUIDES = {
    "shapes": SHAPES,
    "flickr8k": FLICKR8K,
    "flickr30k": FLICKR30K,
    "coco": COCO_2017,
    "karpathy": KARPATHY_COCO,
    "folder": FOLDER,
    "shards": SHARDS,
}

KARPATHY_COCO_COUNTS = {"train": 113_287, "val": 5000, "test": 5000}


def published(config: DatasetConfig, records: Sequence[ImageRecord]) -> Mapping[str, int]:
    """The images that each split should have by the literature; empty where it says nothing."""
    if isinstance(config, KarpathyConfig):  # one kind, three data sets: told apart by ids and size
        if records and isinstance(records[0].image_id, int):
            return KARPATHY_COCO_COUNTS
        return FLICKR30K.counts if len(records) > 10_000 else FLICKR8K.counts
    if isinstance(config, Flickr8kConfig | Flickr30kConfig) and config.splits == "random":
        return {}
    if isinstance(config, CocoConfig):
        files = {"train": config.train, "val": config.val}
        return {split: count for split, count in COCO_2017.counts.items() if "2017" in (files[split] or "")}
    return GUIDES[config.kind].counts


def generate_captions(guide: Guide, root: str) -> str:
    """What belongs in `root`, where it comes from, and what can be downloaded, as text for a person."""
    lines = [guide.title, "", f"{root}/ should hold:", *_indented(guide.layout), "", "Sources:"]
    lines += _indented(guide.source)
    if guide.parts:
        lines += ["", "Can be downloaded:"]
        lines += [
            f"  --download {name:<9} {part.source.size / GB if part.source.size else 0:6.2f} GB  {part.holds}"
            for name, part in guide.parts.items()
        ]
    return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.split("\n")]
