"""Images with their captions, and predictions, as plain records. No torch, no pixels, no ids of words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from captioning.errors import UserError
from captioning.utils.files import read_json, write_json

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
    """A caption given to an image. `logprob` is in nats, summed over the words and the end of caption.

    `score` is `logprob` under the search's length rule; `confidence` the geometric mean of the words'
    probabilities, in (0, 1]; `alternatives` further captions, best first.
    """

    image_id: ImageId
    caption: str
    logprob: float = 0.0
    score: float = 0.0
    confidence: float = 1.0
    finished: bool = True
    alternatives: tuple[Prediction, ...] = field(default=())


def write_predictions(path: str, predictions: Iterable[Prediction]) -> None:
    """Write COCO results format, `[{"image_id", "caption", ...}]`, with our further keys."""
    write_json(path, [as_json(prediction) for prediction in predictions])


def as_json(prediction: Prediction) -> dict[str, Any]:
    """The prediction as a COCO result with our further keys.

    Where there are several captions, all of them are in `captions`, the chosen one first, as `read_results` reads
    them; `alternatives` has the further ones with their numbers.
    """
    entry = asdict(prediction)
    alternatives = [
        {key: value for key, value in entry_.items() if key not in ("image_id", "alternatives")}
        for entry_ in entry.pop("alternatives")
    ]
    if not alternatives:
        return entry
    captions = [prediction.caption, *(each["caption"] for each in alternatives)]
    return {**entry, "captions": captions, "alternatives": alternatives}


class Result(NamedTuple):
    """What a result file says of one image: the caption, and all that were given to it, at least one."""

    image_id: ImageId
    caption: str
    captions: tuple[str, ...]


def read_results(path: str, *, several: bool = False) -> list[Result]:
    """The images of a COCO result file, in the file's order, from any system.

    An image's captions are its key `captions`, a list of strings, or else its `caption` alone. Where there is no
    `caption`, the first of `captions` is.

    Args:
        several: an image may have several entries, each with a caption of its own; the first one's counts.

    Raises:
        UserError: not a list of objects with `image_id` and `caption`, an image id occurs twice (not `several`),
            or some images have more entries than others (`several`).
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        likely = " (an annotations file?)" if isinstance(entries, dict) and "annotations" in entries else ""
        raise UserError(
            f"{path}: expected a list of results at the root, found {type(entries).__name__}{likely}"
        )
    found: dict[ImageId, Result] = {}
    repeated: dict[ImageId, None] = {}
    for number, entry in enumerate(entries):
        result = _result(entry)
        if result is None:
            raise UserError(f'{path}: entry {number} is not {{"image_id": ..., "caption": "..."}}')
        earlier = found.get(result.image_id)
        if earlier is None:
            found[result.image_id] = result
        else:
            repeated[result.image_id] = None
            found[result.image_id] = earlier._replace(captions=earlier.captions + result.captions)
    if not found:
        raise UserError(f"{path}: holds no results")
    if repeated and not several:
        raise UserError(
            f"{path}: {len(repeated)} image ids occur twice (first {list(repeated)[:5]}); give one caption an image"
        )
    sizes = {len(result.captions): result.image_id for result in found.values()}
    if several and len(sizes) > 1:
        told = " and ".join(
            f"{size} captions of image {image_id!r}" for size, image_id in sorted(sizes.items())[:2]
        )
        raise UserError(f"{path}: {told}; give as many to each image")
    return list(found.values())


def _result(entry: Any) -> Result | None:
    """One entry of a result file; None where it is not one."""
    if not isinstance(entry, dict):
        return None
    image_id, captions = entry.get("image_id"), entry.get("captions")
    if isinstance(image_id, bool) or not isinstance(image_id, (int, str)):
        return None
    if captions is None:
        captions = [entry.get("caption")]
    if not (isinstance(captions, list) and captions and all(isinstance(each, str) for each in captions)):
        return None
    caption = entry.get("caption", captions[0])
    return Result(image_id, caption, tuple(captions)) if isinstance(caption, str) else None
