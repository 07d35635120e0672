"""Images with their captions, and predictions, as plain records. No torch, no pixels, no ids of words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from captioning.errors import UserError
from captioning.files import read_json, write_json

ImageId = int | str


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image: its id, where it lies, its reference captions (raw text), its split."""

    image_id: ImageId
    path: str
    captions: tuple[str, ...]
    split: str


class Skip(NamedTuple):
    """One input that was passed over: a file, an annotation id, a line; and why, in a few words."""

    item: str
    reason: str


class Collection(NamedTuple):
    """What a data set reader gives: the records, and what it passed over."""

    records: list[ImageRecord]
    skipped: list[Skip]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A caption given to an image. `logp` is in nats, summed over the words and the end of caption.

    `score` is `logp` under the search's length rule; `confidence` the geometric mean of the words'
    probabilities, in (0, 1]; `alternatives` further captions, best first.
    """

    image_id: ImageId
    caption: str
    logp: float = 0.0
    score: float = 0.0
    confidence: float = 1.0
    finished: bool = True
    alternatives: tuple[Prediction, ...] = field(default=())


def write_predictions(path: str, predictions: Iterable[Prediction]) -> None:
    """Write COCO results format, `[{"image_id", "caption", ...}]`, with our further keys."""
    write_json(path, [as_json(prediction) for prediction in predictions])


def as_json(prediction: Prediction) -> dict[str, Any]:
    """The prediction as a COCO result with our further keys; `alternatives` only where there are any."""
    entry = asdict(prediction)
    alternatives = [
        {key: value for key, value in entry_.items() if key not in ("image_id", "alternatives")}
        for entry_ in entry.pop("alternatives")
    ]
    return {**entry, **({"alternatives": alternatives} if alternatives else {})}


def read_predictions(path: str) -> list[tuple[ImageId, str]]:
    """Image ids and captions of a COCO result file, in the file's order, from any system.

    Raises:
        UserError: not a list of objects with `image_id` and `caption`, or an image id occurs twice.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        likely = " (an annotations file?)" if isinstance(entries, dict) and "annotations" in entries else ""
        raise UserError(
            f"{path}: expected a list of results at the root, found {type(entries).__name__}{likely}"
        )
    pairs: list[tuple[ImageId, str]] = []
    for number, entry in enumerate(entries):
        if not (
            isinstance(entry, dict)
            and isinstance(entry.get("image_id"), (int, str))
            and isinstance(entry.get("caption"), str)
        ):
            raise UserError(f'{path}: entry {number} is not {{"image_id": ..., "caption": "..."}}')
        pairs.append((entry["image_id"], entry["caption"]))
    if not pairs:
        raise UserError(f"{path}: holds no results")
    seen: set[ImageId] = set()
    repeated = [image_id for image_id, _ in pairs if image_id in seen or seen.add(image_id)]  # type: ignore[func-returns-value]
    if repeated:
        raise UserError(
            f"{path}: {len(repeated)} image ids occur twice (first {repeated[:5]}); give one caption an image"
        )
    return pairs
