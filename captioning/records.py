"""Records of images with their reference captions, and of predicted captions; COCO result files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from captioning.errors import UserError
from captioning.utils.files import read_json, write_json

ImageId = int | str


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image: its id, path, reference captions (raw text) and split."""

    image_id: ImageId
    path: str
    captions: tuple[str, ...]
    split: str


class Skip(NamedTuple):
    """An input that was skipped, such as a file or an annotation, and the reason in a few words."""

    item: str
    reason: str
    split: str | None = None  # None if it is of none, or of an unknown one
    is_image: bool = False  # an image is missing, with all its captions


class Collection(NamedTuple):
    """The records of a data set, and the inputs that were skipped."""

    records: list[ImageRecord]
    skipped: list[Skip]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A predicted caption of an image.

    Attributes:
        logprob: log-probability of the words and `<end>` together, in nats.
        score: `logprob` after the search's length normalisation.
        confidence: geometric mean of the words' probabilities, in (0, 1].
        finished: whether the caption ended by `<end>` rather than by the length limit.
        ids: the caption's tokens in the model's vocabulary, including `<end>`; not written to files.
        alternatives: further captions, best first.
    """

    image_id: ImageId
    caption: str
    logprob: float = 0.0
    score: float = 0.0
    confidence: float = 1.0
    finished: bool = True
    ids: tuple[int, ...] = field(default=(), repr=False)
    alternatives: tuple[Prediction, ...] = field(default=())


def write_predictions(path: str, predictions: Iterable[Prediction]) -> None:
    """Write COCO's results format, `[{"image_id", "caption", ...}]`, with the other fields as further keys."""
    write_json(path, [as_json(prediction) for prediction in predictions])


def as_json(prediction: Prediction) -> dict[str, Any]:
    """The prediction as a COCO result with further keys.

    If there are several captions, `captions` contains all of them, the best first, and `alternatives` all but
    the best with their scores.
    """
    entry = asdict(prediction)
    del entry["ids"]
    alternatives = [
        {key: value for key, value in alternative.items() if key not in ("image_id", "ids", "alternatives")}
        for alternative in entry.pop("alternatives")
    ]
    if not alternatives:
        return entry
    captions = [prediction.caption, *(alternative["caption"] for alternative in alternatives)]
    return {**entry, "captions": captions, "alternatives": alternatives}


class Result(NamedTuple):
    """An image in a result file: its caption, and all its captions (at least one)."""

    image_id: ImageId
    caption: str
    captions: tuple[str, ...]


def read_results(path: str, *, several: bool = False) -> list[Result]:
    """Read a COCO result file of any system, in the order of the file.

    An image's captions are those of its key `captions`, a list of strings, or else its `caption` alone. Without
    a `caption`, the first of `captions` is used.

    Args:
        several: allow several entries an image, one caption each; the first entry's is the image's `caption`.

    Raises:
        UserError: the file is not a list of objects with `image_id` and `caption`, an image id occurs twice
            (without `several`), or images have different numbers of captions (with `several`).
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        hint = " (an annotations file?)" if isinstance(entries, dict) and "annotations" in entries else ""
        raise UserError(
            f"{path}: expected a list of results at the root, found {type(entries).__name__}{hint}"
        )
    results: dict[ImageId, Result] = {}
    repeated: dict[ImageId, None] = {}
    for number, entry in enumerate(entries):
        result = _result(entry)
        if result is None:
            raise UserError(
                f'{path}: entry {number} is not {{"image_id": ..., "caption": "..."}}: found {str(entry)[:80]}'
            )
        earlier = results.get(result.image_id)
        if earlier is None:
            results[result.image_id] = result
        else:
            repeated[result.image_id] = None
            results[result.image_id] = earlier._replace(captions=earlier.captions + result.captions)
    if not results:
        raise UserError(f"{path}: contains no results")
    if repeated and not several:
        raise UserError(
            f"{path}: {len(repeated)} image ids occur twice (first {list(repeated)[:5]}); give one caption an image"
        )
    counts = {len(result.captions): result.image_id for result in results.values()}
    if several and len(counts) > 1:
        examples = " and ".join(
            f"{count} captions of image {image_id!r}" for count, image_id in sorted(counts.items())[:2]
        )
        raise UserError(f"{path}: {examples}; give all images the same number")
    return list(results.values())


def _result(entry: Any) -> Result | None:
    """The result in one entry of the file, or None if the entry has another format."""
    if not isinstance(entry, dict):
        return None
    image_id, captions = entry.get("image_id"), entry.get("captions")
    if isinstance(image_id, bool) or not isinstance(image_id, (int, str)):
        return None
    if captions is None:
        captions = [entry.get("caption")]
    if not (
        isinstance(captions, list) and captions and all(isinstance(caption, str) for caption in captions)
    ):
        return None
    caption = entry.get("caption", captions[0])
    return Result(image_id, caption, tuple(captions)) if isinstance(caption, str) else None
