"""Statistics of a data set: split sizes, caption lengths, vocabulary coverage, broken and duplicate image files."""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np

from captioning.errors import UserError
from captioning.records import ImageRecord, Skip
from captioning.text.tokenizers import TOKENIZERS, TokenizerName, refuse_sentences_as_words
from captioning.utils.file_slice import read_bytes
from captioning.utils.progress import progress

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)
MAX_UNKNOWN = 10


class SplitSurvey(NamedTuple):
    """Statistics of one split.

    Attributes:
        captions_per_image: number of captions -> number of images.
        lengths: percentile -> tokens of a caption.
        known_tokens: share of tokens in the vocabulary of the training split.
        known_captions: share of captions whose tokens are all in it.
        unknown: the commonest tokens that are not in it, with their counts.
    """

    images: int
    captions: int
    captions_per_image: dict[int, int]
    lengths: dict[int, float]
    mean_length: float
    known_tokens: float
    known_captions: float
    unknown: dict[str, int]


class Survey(NamedTuple):
    """All splits; `vocabulary` is the number of training words that occur `min_count` times, of `training_words`."""

    splits: dict[str, SplitSurvey]
    min_count: int
    vocabulary: int
    training_words: int


class FileSurvey(NamedTuple):
    """Broken files, notes on accepted ones, and groups of equal files: in one split (`repeated`) and across splits."""

    checked: int
    broken: list[Skip]
    noted: list[Skip]
    repeated: list[list[ImageRecord]]
    leaked: list[list[ImageRecord]]


def survey(
    records: Sequence[ImageRecord],
    *,
    min_count: int,
    train: str = "train",
    tokenizer: TokenizerName = "ptb",
) -> Survey:
    """Sizes, lengths and vocabulary coverage of every split. Without a training split no token is known.

    Raises:
        UserError: whole sentences are words; another tokenizer is needed.
    """
    tokens: dict[str, list[list[str]]] = defaultdict(list)
    for record in progress(records, desc="tokenizing", unit="image", delay=2.0):
        tokens[record.split] += [TOKENIZERS[tokenizer](caption) for caption in record.captions]
    counts = Counter(token for caption in tokens.get(train, ()) for token in caption)
    refuse_sentences_as_words(counts, tokenizer)
    known = {token for token, count in counts.items() if count >= min_count}
    splits = {
        split: _survey_split([record for record in records if record.split == split], captions, known)
        for split, captions in tokens.items()
    }
    return Survey(splits, min_count, len(known), len(counts))


def _survey_split(
    records: Sequence[ImageRecord], captions: Sequence[Sequence[str]], known: set[str]
) -> SplitSurvey:
    lengths = np.array([len(caption) for caption in captions])
    unknown = Counter(token for caption in captions for token in caption if token not in known)
    complete = sum(all(token in known for token in caption) for caption in captions)
    per_image = Counter(len(record.captions) for record in records)
    return SplitSurvey(
        images=len(records),
        captions=len(captions),
        captions_per_image=dict(sorted(per_image.items())),
        lengths={percentile: float(np.percentile(lengths, percentile)) for percentile in PERCENTILES},
        mean_length=float(lengths.mean()),
        known_tokens=1 - sum(unknown.values()) / max(1, int(lengths.sum())),
        known_captions=complete / len(captions),
        unknown=dict(unknown.most_common(MAX_UNKNOWN)),
    )


def survey_files(
    records: Sequence[ImageRecord], *, read_notes: Callable[[BinaryIO], Sequence[str]], threads: int
) -> FileSurvey:
    """Read every image file once and report those that don't open, and those with equal bytes.

    `read_notes` opens an image and gives the notes on it; it raises UserError for a file that is not an image.
    Scaled or recompressed copies are not found, because they differ in their bytes.
    """

    def check(record: ImageRecord) -> tuple[bytes, str | None, Sequence[str]]:
        try:
            content = read_bytes(record.path)
            notes = read_notes(io.BytesIO(content))
        except OSError as error:
            return b"", error.strerror or str(error), ()
        except UserError as error:
            return b"", getattr(error, "reason", str(error)), ()
        return hashlib.sha256(content).digest(), None, notes

    broken: list[Skip] = []
    noted: list[Skip] = []
    by_digest: dict[bytes, list[ImageRecord]] = defaultdict(list)
    with ThreadPoolExecutor(threads) as pool:
        results = progress(
            pool.map(check, records), total=len(records), desc="opening images", unit="image", delay=2.0
        )
        for record, (digest, reason, notes) in zip(records, results, strict=True):
            noted.extend(Skip(record.path, note) for note in notes)
            if reason is None:
                by_digest[digest].append(record)
            else:
                broken.append(Skip(record.path, reason, record.split, is_image=True))
    groups = [group for group in by_digest.values() if len(group) > 1]
    return FileSurvey(
        checked=len(records),
        broken=broken,
        noted=noted,
        repeated=[group for group in groups if len({record.split for record in group}) == 1],
        leaked=[group for group in groups if len({record.split for record in group}) > 1],
    )
