"""Checks that every data set must pass: usable captions, existing files, unique ids, no leakage across splits."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from captioning.datasets.disk import ImageFolder
from captioning.datasets.splits import unify_names
from captioning.errors import UserError
from captioning.records import Collection, ImageId, ImageRecord, Skip
from captioning.text.tokenizers import UNSPACED
from captioning.utils.file_slice import FileSlice, read_bytes
from captioning.utils.files import atomic_write, read_text
from captioning.utils.progress import progress

MAX_EXAMPLES = 5
"""Number of offending values that a message lists."""

MISSING = object()
"""In place of a caption that its file does not contain."""

MAX_UNSPACED_WORD = 4

LabelledCaptions = dict[str, list[tuple[str, object]]]
"""Image name -> its captions, each with a label that locates it in its file."""


class Entry(NamedTuple):
    """An image as it stands in an annotation file, before any check.

    Attributes:
        captions: (label, caption) pairs; the label ("annotation 7") locates the caption, which may have any type.
        location: the place of the image's name in the file.
    """

    image_id: ImageId
    name: str
    split: str
    captions: Sequence[tuple[str, object]]
    location: str


def caption_problem(caption: object) -> str | None:
    """Why `caption` cannot be used, in a few words, or None if it can."""
    if not isinstance(caption, str):
        if caption is MISSING:
            return "caption is missing"
        if caption is None:
            return "caption is null"
        if isinstance(caption, list) and _is_token_list(caption):
            return "caption is a list of words; join them with spaces"
        return f"caption is not a string ({type(caption).__name__})"
    if caption.startswith(("['", '["')) and caption.endswith("]"):
        return "caption is a list written as text; write one caption a row, or its words with spaces between them"
    if not caption.isascii() and any("\ud800" <= character <= "\udfff" for character in caption):
        return "caption is not valid Unicode (half of a surrogate pair)"
    if any(map(str.isalnum, caption)):
        return None
    return "caption has no words, only punctuation" if caption.strip() else "caption is empty"


def list_captions(value: object) -> list[object]:
    """The captions in a value that is one caption or a list of them. A list of words stays one (unusable) caption."""
    return value if isinstance(value, list) and not _is_token_list(value) else [value]


def _is_token_list(values: list[object]) -> bool:
    """Whether the values look like the words of one caption: two strings or more, all of them single words."""
    return len(values) > 1 and all(isinstance(value, str) and _is_word(value) for value in values)


def _is_word(text: str) -> bool:
    # a whole sentence has no spaces in these scripts, but is longer than a word
    return len(text.split()) == 1 and (len(text) <= MAX_UNSPACED_WORD or not UNSPACED.search(text))


def build_records(entries: Iterable[Entry], images: ImageFolder, skipped: Sequence[Skip] = ()) -> Collection:
    """Records of the entries with a file and a usable caption; everything else is added to `skipped`.

    Raises:
        UserError: an entry's name leads out of the data root.
    """
    records: list[ImageRecord] = []
    all_skipped = list(skipped)
    for entry in entries:
        path = images.path(entry.name, entry=entry.location)
        if images.missing(path):
            all_skipped.append(Skip(path, images.why_missing(path), entry.split, is_image=True))
            without = f"caption without image: {path}"
            all_skipped.extend(Skip(label, without, entry.split) for label, _ in entry.captions)
            continue
        captions: list[str] = []
        for label, caption in entry.captions:
            if reason := caption_problem(caption):
                all_skipped.append(Skip(label, reason, entry.split))
            else:
                captions.append(str(caption).strip())
        if captions:
            records.append(ImageRecord(entry.image_id, path, tuple(captions), entry.split))
        else:
            all_skipped.append(Skip(path, "image without captions", entry.split))
    return Collection(records, all_skipped)


def read_names(path: str) -> list[str]:
    """The image names of a list, one a line. Raises UserError where one occurs twice."""
    names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    require_unique(names, where=path, what="image names")
    return names


def _duplicates(values: Iterable[Hashable]) -> list[Hashable]:
    """The values that occur more than once, in order of first occurrence."""
    return [value for value, count in Counter(values).items() if count > 1]


def require_unique(values: Iterable[Hashable], *, where: str, what: str) -> None:
    """Raise UserError, with the first five, if values (`what`: "annotation ids") occur twice."""
    if duplicates := _duplicates(values):
        raise UserError(
            f"{where}: {len(duplicates)} {what} occur twice (first {duplicates[:MAX_EXAMPLES]}); "
            "remove the copies"
        )


def check(
    collection: Collection, *, where: str, max_bad: float, skipped_csv: str | None = None
) -> Collection:
    """Return the collection if it is fit for use, and write what was skipped to `skipped_csv`, if given.

    Splits are returned under their usual names: "validation" as val (see `splits.usual_names`).
    `max_bad` is a share of the images and captions read, of all of them and of each split's.

    Raises:
        UserError: an image id or file occurs twice, an image is in two splits (by id or by file), more than
            `max_bad` was skipped, or nothing is left.
    """
    records, skipped = unify_names(collection, where=where)
    if skipped and skipped_csv is not None:
        write_skipped(skipped_csv, skipped)
    refuse_leakage(records, where=where)
    require_unique((record.image_id for record in records), where=where, what="image ids")
    require_unique((record.path for record in records), where=where, what="image files")
    splits = sorted({record.split for record in records} | {skip.split for skip in skipped if skip.split})
    for split in (None, *splits):
        bad = [skip for skip in skipped if split in (None, skip.split)]
        good = [record for record in records if split in (None, record.split)]
        total = len(good) + sum(len(record.captions) for record in good) + len(bad)
        if len(bad) > max_bad * total:
            counts = count_reasons(bad).items()
            reasons = ", ".join(f"{count} {reason} (first {first})" for reason, (count, first) in counts)
            advice = f"all are listed in {skipped_csv}" if skipped_csv else "correct them, or raise max_bad"
            of_split = f" of the split {split!r}" if split else ""
            raise UserError(
                f"{where}: {len(bad)} of {total} images and captions{of_split} are bad, more than max_bad = "
                f"{max_bad:g} allows: {reasons}; {advice}"
            )
    if not records:
        raise UserError(f"{where}: contains no image with a caption")
    return Collection(records, skipped)


def missing_images(collection: Collection, split: str) -> int:
    """How many images of a split have no file; scores leave them out."""
    return sum(skip.is_image and skip.split == split for skip in collection.skipped)


def refuse_bad_split(bad: Mapping[str, str], splits: Iterable[str], *, max_bad: float, where: str) -> None:
    """Raise UserError if more than the share `max_bad` of a split's images are bad, or all of them.

    Args:
        bad: bad image -> its split.
        splits: the split of each image.
        where: the beginning of the message.
    """
    totals = Counter(splits)
    for split, count in Counter(bad.values()).items():
        if count > max_bad * totals[split] or count == totals[split]:
            first = next(image for image, its_split in bad.items() if its_split == split)
            raise UserError(
                f"{where}: {count} of the {totals[split]} images of the split {split!r} are unusable (first {first}), "
                f"more than max_bad = {max_bad:g} allows; replace them"
            )


def refuse_leakage(records: Sequence[ImageRecord], *, where: str) -> None:
    """Raise UserError, with a count, if an image (by id or by file) is in two splits."""
    for what, keys in (("id", [r.image_id for r in records]), ("file", [r.path for r in records])):
        pairs = dict.fromkeys(zip(keys, (record.split for record in records), strict=True))
        leaked = _duplicates(key for key, _ in pairs)
        if leaked:
            examples = leaked[:MAX_EXAMPLES]
            splits = sorted({split for key, split in pairs if key in examples})
            raise UserError(
                f"{where}: leakage: {len(leaked)} images are in two splits by {what} "
                f"(first {examples} in {' and '.join(splits)}); leave each in one"
            )


def refuse_equal_files(records: Sequence[ImageRecord], *, where: str) -> None:
    """Raise UserError if images of different splits have the same bytes.

    Only files of equal size in different splits are read; of slices of a tar the CRC-32 must be equal as well.
    Files that cannot be read are left to whoever opens them.
    """
    by_size = _group(records, _size)
    candidates = [record for group in by_size if _in_two_splits(group) for record in group]
    bar = progress(candidates, desc="comparing files of equal size", unit="image", delay=2.0)
    leaked = [group for group in _group(bar, _digest) if _in_two_splits(group)]
    if leaked:
        raise content_leakage(leaked, where=where)


def content_leakage(groups: Sequence[Sequence[ImageRecord]], *, where: str, listed: str = "") -> UserError:
    """The error for groups of equal files in different splits; `listed` names the file that lists them."""
    example = " = ".join(f"{record.path} ({record.split})" for record in groups[0])
    return UserError(
        f"{where}: leakage: {len(groups)} images are in two splits by content (first {example}); leave each in one"
        + (f" (all are in {listed})" if listed else "")
    )


def _group(
    records: Iterable[ImageRecord], key: Callable[[ImageRecord], Hashable]
) -> Iterator[list[ImageRecord]]:
    """The records by their key; those whose file cannot be read are left out."""
    groups: dict[Hashable, list[ImageRecord]] = {}
    for record in records:
        with contextlib.suppress(OSError, UserError):
            groups.setdefault(key(record), []).append(record)
    yield from groups.values()


def _size(record: ImageRecord) -> Hashable:
    part = FileSlice.parse(record.path)
    return os.path.getsize(record.path) if part is None else (part.size, part.crc)


def _digest(record: ImageRecord) -> Hashable:
    return hashlib.sha256(read_bytes(record.path)).digest()


def _in_two_splits(records: Sequence[ImageRecord]) -> bool:
    return len({record.split for record in records}) > 1


def refuse_empty_splits(collection: Collection, splits: dict[str, str]) -> Collection:
    """Return the collection if each of `splits` (name -> the file that lists its images) has an image.

    If images were skipped, that may be the cause, and `check` reports it.
    """
    present = {record.split for record in collection.records}
    for split, source in splits.items():
        if split not in present and not collection.skipped:
            raise UserError(f"{source}: names no image for the split {split!r}")
    return collection


def count_reasons(skipped: Iterable[Skip]) -> dict[str, tuple[int, str]]:
    """For each reason (up to its colon) the number of skipped items, and the first."""
    counts: dict[str, tuple[int, str]] = {}
    for item, reason, *_ in skipped:
        key = reason.partition(":")[0]
        count, first = counts.get(key, (0, item))
        counts[key] = (count + 1, first)
    return counts


def write_skipped(path: str | os.PathLike[str], skipped: Iterable[Skip]) -> None:
    """Write a CSV with the columns `item, reason`."""
    with (
        atomic_write(path) as part,
        open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("item", "reason"))
        writer.writerows((skip.item, skip.reason) for skip in skipped)
