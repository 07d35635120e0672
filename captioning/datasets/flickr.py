"""Formats that Flickr8k and Flickr30k share: the token file, and Karpathy's archive of captions and splits."""

from __future__ import annotations

from captioning.datasets import checks
from captioning.datasets.base import GB, UNSPLIT, CaptionFile, Download, RemoteFile
from captioning.datasets.checks import Entry, LabelledCaptions
from captioning.datasets.disk import ImageFolder
from captioning.records import Collection, Skip
from captioning.utils.files import read_text

KARPATHY_CAPTIONS = Download(
    file=RemoteFile(
        url="https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
        size=36_745_453,
        sha256="4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
    ),
    content="dataset_coco.json, dataset_flickr8k.json and dataset_flickr30k.json: captions and splits",
    max_bytes=1 * GB,
    prefix="dataset_",
    suffix=".json",
    folder="caption_datasets",
)
"""Size and sha256 as recorded by TensorFlow Datasets (`url_checksums/coco_captions.txt`)."""


def is_token_line(line: str) -> bool:
    """Whether `line` has the form `NAME.jpg#0<TAB>caption`."""
    label, tab, _ = line.partition("\t")
    return bool(tab) and "#" in label


def read_tokens(path: str) -> tuple[LabelledCaptions, list[Skip]]:
    """Captions of a token file, `NAME.jpg#0<TAB>caption` a line, and the lines of another form.

    One name in Flickr8k's file ends in `.jpg.1`; it is kept unchanged, and neither a list nor a folder has it.

    Raises:
        UserError: the file is unreadable, or a label (`NAME.jpg#0`) occurs twice.
    """
    captions: LabelledCaptions = {}
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
    checks.require_unique(labels, where=path, what="caption labels")
    return captions, skipped


def unsplit_records(file: CaptionFile, captions: LabelledCaptions, skipped: list[Skip]) -> Collection:
    """All captions of a file without splits, as records of the split `UNSPLIT` without images."""
    entries = (
        Entry(name, name, UNSPLIT, texts, f"{file.path}: image {number}")
        for number, (name, texts) in enumerate(captions.items(), 1)
    )
    return checks.build_records(entries, ImageFolder(None), skipped)
