"""Metrics of captions, by name, and the scores that they compute from tokens.

To add a metric, write `captioning/metrics/X.py` with a `Metric` and put it into `METRICS` below. A metric outside the
package is named "my_module:MyMetric".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

from captioning.errors import UserError
from captioning.metrics.base import (
    AdditiveStatistics,
    Metric,
    MetricInput,
    MetricScore,
    Unavailable,
    mean_score,
    score_from_statistics,
)
from captioning.metrics.bleu import BLEU
from captioning.metrics.cider import CiderD, PlainCider
from captioning.metrics.document_frequencies import DocumentFrequencies
from captioning.metrics.meteor import Meteor
from captioning.metrics.ngrams import Floats, ReferenceCounts
from captioning.metrics.nltk_bleu import NLTK_BLEU
from captioning.metrics.rouge import RougeL
from captioning.metrics.spice import Spice
from captioning.utils.plugins import load_object

__all__ = [
    "METRICS",
    "NAMES",
    "AdditiveStatistics",
    "DocumentFrequencies",
    "Metric",
    "MetricInput",
    "MetricScore",
    "ReferenceCounts",
    "Scores",
    "Unavailable",
    "check_metric_name",
    "get_metric",
    "mean_score",
    "printed_scale",
    "score",
    "score_from_statistics",
]

_DEFAULT: tuple[Metric, ...] = (*BLEU, RougeL(), PlainCider(), CiderD())
_ON_REQUEST: tuple[Metric, ...] = (Meteor(), Spice(), *NLTK_BLEU)

METRICS: dict[str, Metric] = {metric.name: metric for metric in (*_DEFAULT, *_ON_REQUEST)}
"""All metrics of the package."""

NAMES = tuple(metric.name for metric in _DEFAULT)
"""The metrics that are always computed. What papers and pycocoevalcap print as "CIDEr" is CIDEr-D."""


class Scores(NamedTuple):
    """Scores of I images, by the name of the metric: BLEU and ROUGE-L in 0..1, CIDEr and CIDEr-D in 0..10."""

    corpus: dict[str, float]
    per_image: dict[str, Floats]  # (I,); without the metrics that give a single image no score
    statistics: Mapping[str, AdditiveStatistics] = MappingProxyType({})  # of corpus scores that are no means

    @classmethod
    def of(cls, results: Mapping[str, MetricScore]) -> Scores:
        return cls(
            {name: result.corpus for name, result in results.items()},
            {name: result.per_image for name, result in results.items() if result.per_image is not None},
            {name: result.statistics for name, result in results.items() if result.statistics is not None},
        )

    def __or__(self, other: Scores) -> Scores:
        return Scores(
            self.corpus | other.corpus,
            self.per_image | other.per_image,
            {**self.statistics, **other.statistics},
        )


def get_metric(name: str | Metric, *, allow_code: bool = True) -> Metric:
    """The metric of a name in `METRICS`, or of "module:Class" outside the package.

    Args:
        allow_code: whether a module may be imported for it, see `load_object`.

    Raises:
        ValueError: there is no metric of this name.
        UserError: the class outside the package cannot be imported or is no metric.
    """
    if isinstance(name, Metric):
        return name
    if name in METRICS:
        return METRICS[name]
    if ":" in name:
        return _import_metric(name, allow_code)
    raise ValueError(
        f"unknown metric {name!r}; choose from {', '.join(METRICS)}, or give module:Class of your own"
    )


@cache
def _import_metric(name: str, allow_code: bool) -> Metric:
    found = load_object(name, allow_code=allow_code)
    if not (isinstance(found, type) and issubclass(found, Metric)):
        raise UserError(f"{name} is not a subclass of captioning.metrics.Metric")
    try:
        metric = found()
    except TypeError as error:  # an abstract class, or one whose constructor needs arguments
        raise UserError(f"{name} cannot be created without arguments ({error})") from None
    if missing := [key for key in ("name", "description") if not isinstance(getattr(metric, key, None), str)]:
        raise UserError(f"{name} has no {missing[0]}; set it to a string in the class")
    if metric.name in METRICS:
        raise UserError(
            f"{name} is named {metric.name}, as a metric of this package is; give it another name"
        )
    return metric


def check_metric_name(name: str) -> str:
    """`name`, if it can be a metric's; "module:Class" is not imported yet.

    Raises:
        ValueError: it is neither in `METRICS` nor of the form module:Class.
    """
    return name if ":" in name else get_metric(name).name


def printed_scale(name: str, *metrics: str | Metric) -> float:
    """The factor by which tables multiply a score: the scale of the metric, among `METRICS` or `metrics`, else 100."""
    scales = {metric.name: metric.scale for metric in (*METRICS.values(), *map(get_metric, metrics))}
    return scales.get(name, 100.0)


def score(
    references: Sequence[Sequence[Sequence[str]]] | ReferenceCounts,
    candidates: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str | Metric] = NAMES,
    frequencies: DocumentFrequencies | None = None,
) -> Scores:
    """Score the candidate of each of I images against the image's references.

    Args:
        references: for each image its references, each a sequence of tokens; or their counts.
        candidates: for each image one sequence of tokens.
        metrics: names or metrics, see `get_metric`.
        frequencies: document frequencies for CIDEr; by default those of the references.

    Raises:
        ValueError: no images, an image without references, not one candidate an image, an unknown metric.
        Unavailable: a metric cannot be computed here.
    """
    chosen = [get_metric(name) for name in metrics]
    captions = MetricInput(references, candidates, frequencies=frequencies)
    return Scores.of({metric.name: metric.score(captions) for metric in chosen})
