"""What a checkpoint was made from: settings and data. A run resumes it only with the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from captioning.errors import UserError
from captioning.records import ImageRecord
from captioning.text.vocabulary import Vocabulary
from captioning.utils.file_slice import FileSlice
from captioning.utils.files import fingerprint_items
from captioning.utils.validation import differing_settings


class Fingerprint(NamedTuple):
    """A part of the data: how many items, and a hash of them in their order."""

    items: int
    hash: str

    def __str__(self) -> str:
        return f"{self.items:,} (fingerprint {self.hash})"


class Identity(NamedTuple):
    """Settings that decide a run's result, and fingerprints of its data."""

    settings: Mapping[str, Any]
    data: Mapping[str, Fingerprint]

    def as_json(self) -> dict[str, Any]:
        return {"settings": self.settings, "data": self.data}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Identity:
        return cls(values["settings"], {part: Fingerprint(*value) for part, value in values["data"].items()})


def caption_fingerprints(
    vocabulary: Vocabulary, splits: Mapping[str, Sequence[ImageRecord]]
) -> dict[str, Fingerprint]:
    """Fingerprints of the vocabulary, and of each split's image names and captions."""
    found = {"words of the vocabulary": Fingerprint(len(vocabulary), fingerprint_items(vocabulary.words))}
    for split, records in splits.items():
        names = ([record.image_id, _name(record.path)] for record in records)
        found[f"images of {split}"] = Fingerprint(len(records), fingerprint_items(names))
        found[f"captions of {split}"] = Fingerprint(
            sum(len(record.captions) for record in records),
            fingerprint_items(record.captions for record in records),
        )
    return found


def content_fingerprints(
    splits: Mapping[str, Sequence[ImageRecord]],
    contents: Callable[[Sequence[ImageRecord]], Iterable[Sequence[object]]],
) -> dict[str, Fingerprint]:
    """Fingerprints of the content of each split's readable images; see `ImageSource.contents`."""
    return {
        f"readable images of {split}, by content": Fingerprint(
            len(records), fingerprint_items(contents(records))
        )
        for split, records in splits.items()
    }


def refuse_other_settings(checkpoint: Path, stored: Identity, settings: Mapping[str, Any]) -> None:
    """Raises UserError, which names them, if settings differ from those of the checkpoint."""
    rows = differing_settings([stored.settings, settings])
    if rows:
        changes = ", ".join(f"{key} {before!r}, now {now!r}" for key, (before, now) in rows)
        raise UserError(
            f"{checkpoint}: made with other settings ({changes}); resume without the change, or train its best model "
            f"on as a new run: name=ANOTHER start={_run(checkpoint)}"
        )


def refuse_other_data(checkpoint: Path, stored: Identity, data: Mapping[str, Fingerprint]) -> None:
    """Raises UserError, with both values, if parts of the data differ from those of the checkpoint."""
    differing = [part for part in data if stored.data.get(part) != data[part]]
    if not differing:
        return
    changes = "; ".join(f"{part} {stored.data.get(part)}, now {data[part]}" for part in differing)
    advice = (
        ""
        if "words of the vocabulary" in differing
        else f", with start={_run(checkpoint)} from its best model"
    )
    raise UserError(
        f"{checkpoint}: the data set has changed since: {changes}; restore it, or begin anew with "
        f"name=ANOTHER{advice}"
    )


def _run(checkpoint: Path) -> Path:
    return checkpoint.parent.parent


def _name(path: str) -> str:
    part = FileSlice.parse(path)
    return part.name if part else os.path.basename(path)
