"""What every data set must pass: captions with words, files there, no leakage. Knows no file formats."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Annotated, NamedTuple

from pydantic import Field

from captioning.datasets.disk import ImageFolder
from captioning.errors import UserError
from captioning.records import Collection, ImageId, ImageRecord, Skip
from captioning.utils.files import replacing

MaxBad = Annotated[float, Field(ge=0, le=1)]
"""Type of a config's `max_bad`: the share of images and captions that may be passed over."""

FIRST = 5
"""How many offenders a message names."""


class Entry(NamedTuple):
    """An image as a reader found it; `captions`: labels ("annotation 7") with whatever stood there."""

    image_id: ImageId
    name: str
    split: str
    captions: Sequence[tuple[str, object]]
    where: str


def unusable(caption: object) -> str | None:
    """Why `caption` cannot be used, in a few words, or None where it can."""
    if not isinstance(caption, str):
        return "caption is null" if caption is None else f"caption is not a string ({type(caption).__name__})"
    if not caption.isascii() and any("\ud800" <= character <= "\udfff" for character in caption):
        return "caption is not valid Unicode (half of a surrogate pair)"
    if any(map(str.isalnum, caption)):
        return None
    return "caption has no words, only punctuation" if caption.strip() else "caption is empty"


def gather(entries: Iterable[Entry], images: ImageFolder) -> Collection:
    """Records of the entries that have a file and a usable caption; the others, and their captions, as skips.

    Raises:
        UserError: an entry's name points outside the data root.
    """
    records: list[ImageRecord] = []
    skipped: list[Skip] = []
    for entry in entries:
        path = images.path(entry.name, entry=entry.where)
        if images.missing(path):
            skipped.append(Skip(path, "no such image file"))
            skipped.extend(Skip(label, f"caption without image: {path}") for label, _ in entry.captions)
            continue
        good: list[str] = []
        for label, caption in entry.captions:
            if reason := unusable(caption):
                skipped.append(Skip(label, reason))
            else:
                good.append(str(caption).strip())
        if good:
            records.append(ImageRecord(entry.image_id, path, tuple(good), entry.split))
        else:
            skipped.append(Skip(path, "image without captions"))
    return Collection(records, skipped)


def repeated(values: Iterable[Hashable]) -> list[Hashable]:
    """The values that occur more than once, in the order in which they first do."""
    return [value for value, count in Counter(values).items() if count > 1]


def refuse_repeated(values: Iterable[Hashable], *, where: str, what: str) -> None:
    """Raises UserError, with the first five, where a value (`what`: "annotation ids") occurs twice."""
    if twice := repeated(values):
        raise UserError(
            f"{where}: {len(twice)} {what} occur twice (first {twice[:FIRST]}); remove the copies"
        )


def check(
    collection: Collection, *, where: str, max_bad: float, skipped_csv: str | None = None
) -> Collection:
    """The collection, if it is fit for use. What was passed over goes to `skipped_csv`, where one is named.

    `max_bad` is a share of all images and captions seen. When it is exceeded and no `skipped_csv` is named,
    the list is written to `skipped.csv` in the current folder.

    Raises:
        UserError: an image id or file occurs twice, an image is in two splits (by id or by file), more than
            `max_bad` was passed over, or nothing is left.
    """
    records, skipped = collection
    if skipped and skipped_csv is not None:
        write_skipped(skipped_csv, skipped)
    refuse_leakage(records, where=where)
    refuse_repeated((record.image_id for record in records), where=where, what="image ids")
    refuse_repeated((record.path for record in records), where=where, what="image files")
    seen = len(records) + sum(len(record.captions) for record in records) + len(skipped)
    if len(skipped) > max_bad * seen:
        listed = skipped_csv or "skipped.csv"
        write_skipped(listed, skipped)
        found = count_reasons(skipped).items()
        reasons = ", ".join(f"{count} {reason} (first {first})" for reason, (count, first) in found)
        raise UserError(
            f"{where}: {len(skipped)} of {seen} images and captions are bad, more than max_bad = {max_bad:g} "
            f"allows: {reasons}; all are listed in {listed}"
        )
    if not records:
        raise UserError(f"{where}: holds no image with a caption")
    return collection


def refuse_leakage(records: Sequence[ImageRecord], *, where: str) -> None:
    """Raises UserError, with a count, where one image (by id or by file) is in two splits."""
    for what, keys in (("id", [r.image_id for r in records]), ("file", [r.path for r in records])):
        pairs = set(zip(keys, (record.split for record in records), strict=True))
        twice = repeated(key for key, _ in pairs)
        if twice:
            order = {key: number for number, key in enumerate(keys)}
            twice.sort(key=lambda key: order[key])  # type: ignore[index]
            splits = sorted({split for key, split in pairs if key in set(twice[:FIRST])})
            raise UserError(
                f"{where}: leakage: {len(twice)} images are in two splits by {what} "
                f"(first {twice[:FIRST]} in {' and '.join(splits)}); leave each in one"
            )


def refuse_empty_splits(collection: Collection, splits: dict[str, str]) -> Collection:
    """The collection, if every one of `splits` (name: the file that names its images) has an image.

    Where images were passed over, emptiness may come of that: `check` then says so.
    """
    there = {record.split for record in collection.records}
    for split, source in splits.items():
        if split not in there and not collection.skipped:
            raise UserError(f"{source}: names no image for the split {split!r}")
    return collection


def count_reasons(skipped: Iterable[Skip]) -> dict[str, tuple[int, str]]:
    """For each reason (what follows a colon left out) how often, and the first item."""
    found: dict[str, tuple[int, str]] = {}
    for item, reason in skipped:
        kind = reason.partition(":")[0]
        count, first = found.get(kind, (0, item))
        found[kind] = (count + 1, first)
    return found


def write_skipped(path: str | os.PathLike[str], skipped: Iterable[Skip]) -> None:
    """Write a CSV with the columns `item, reason`."""
    with (
        replacing(path) as part,
        open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Skip._fields)
        writer.writerows(skipped)
