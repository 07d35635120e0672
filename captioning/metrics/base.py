"""What a metric is: its interface, its input and its result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np

from captioning.errors import UserError
from captioning.metrics.document_frequencies import DocumentFrequencies
from captioning.metrics.ngrams import Floats, NgramCounts, ReferenceCounts, count_ngrams

T = TypeVar("T")
Tokens = Sequence[str]


class Unavailable(UserError):
    """A metric cannot be computed here: the message names the metric, the reason and the next step."""


class AdditiveStatistics(NamedTuple):
    """Numbers of each image whose sums over images determine the corpus score, such as BLEU's counts."""

    values: np.ndarray  # (I, C)
    score: Callable[[np.ndarray], np.ndarray]  # (..., C), summed over images, resampled or not -> (...)


class MetricScore(NamedTuple):
    """Scores of I images by one metric."""

    corpus: float
    per_image: Floats | None = None  # (I,); None if a single image has no score
    statistics: AdditiveStatistics | None = None  # of a corpus score that is no mean over images
    note: str = ""  # a warning about this result, in one sentence
    details: str = ""  # added to the metric's description, for example a library's version


def mean_score(per_image: Sequence[float] | Floats, **more: Any) -> MetricScore:
    """A corpus score that is the mean of the images' scores."""
    scores = np.asarray(per_image, dtype=np.float64)
    return MetricScore(float(scores.mean()), scores, **more)


def score_from_statistics(values: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> MetricScore:
    """A corpus score computed from sums over images, as `AdditiveStatistics` describes."""
    statistics = AdditiveStatistics(values, score)
    return MetricScore(float(score(values.sum(axis=0))), score(values), statistics)


class MetricInput:
    """One candidate caption for each of I images beside the images' references, all of them tokens."""

    def __init__(
        self,
        references: Sequence[Sequence[Tokens]] | ReferenceCounts,
        candidates: Sequence[Tokens],
        *,
        frequencies: DocumentFrequencies | None = None,
    ) -> None:
        """`frequencies`: for idf weights; by default those of the references.

        Raises:
            ValueError: no images, an image without references, not one candidate an image.
        """
        if not isinstance(references, ReferenceCounts):
            references = ReferenceCounts(references)
        if len(candidates) != references.num_images:
            raise ValueError(f"{len(candidates)} candidates for {references.num_images} images")
        if isinstance(candidates[0], str):
            raise ValueError(f"a candidate is a sequence of tokens, got the string {candidates[0]!r}")
        self.references = references
        self.candidates = candidates
        self._frequencies = frequencies
        self._shared: dict[Callable[[MetricInput], Any], Any] = {}

    def pairs(self) -> Iterator[tuple[Sequence[Tokens], Tokens]]:
        """The references and the candidate of each image."""
        return zip(self.references.tokens, self.candidates, strict=True)

    @cached_property
    def counts(self) -> NgramCounts:
        """N-gram counts of the candidates."""
        return count_ngrams(self.candidates)

    @cached_property
    def frequencies(self) -> DocumentFrequencies:
        """Document frequencies, for idf weights."""
        return self._frequencies or DocumentFrequencies.of(self.references)

    def shared(self, compute: Callable[[MetricInput], T]) -> T:
        """`compute(self)`, run once for all metrics that use it."""
        if compute not in self._shared:
            self._shared[compute] = compute(self)
        result: T = self._shared[compute]
        return result


class Metric(ABC):
    """A score of captions against references. Concrete metrics set `name` and `description` and define `score`.

    Attributes:
        name: in tables, configs and metrics.jsonl, for example "CIDEr-D".
        description: everything the number depends on, in a phrase, for the signature of an evaluation.
        higher_is_better: False for an error or a distance.
        scale: tables show scores times this.
    """

    name: str
    description: str
    higher_is_better: bool = True
    scale: float = 100.0

    def check(self) -> None:  # noqa: B027
        """Raise Unavailable if a program or package that this metric needs is missing."""

    @abstractmethod
    def score(self, captions: MetricInput) -> MetricScore:
        """Score all candidates.

        Raises:
            Unavailable: the metric cannot be computed here.
        """
