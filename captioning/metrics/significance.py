"""Paired bootstrap over images and Holm's correction: is one system better than another?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from captioning.metrics import Scores
from captioning.metrics.ngrams import Floats, Ints
from captioning.utils.progress import progress

CONFIDENCE = 0.95
RESAMPLES = 10_000
_CHUNK = 1 << 21  # random numbers drawn at a time: bounds memory and changes no result

METHOD = (
    "paired bootstrap over images: BLEU, mBLEU and METEOR recomputed from summed counts, others from their means; "
    "CIDEr's document frequencies kept; 95 % percentile interval; p two-sided, of the shifted difference, +1 smoothed"
)
"""Description of `paired_bootstrap` for signatures."""


class Comparison(NamedTuple):
    """Systems a and b compared on one metric, on the metric's own scale."""

    a: float  # scores on all images
    b: float
    difference: float  # a - b
    low: float  # 95 % confidence interval of the difference
    high: float
    p: float  # two-sided


def comparable_metrics(scores: Scores) -> list[str]:
    """The metrics of `scores` whose corpus score can be resampled: computed from sums over images, or a mean."""
    return [
        name
        for name, value in scores.corpus.items()
        if name in scores.statistics
        or (
            name in scores.per_image
            and abs(scores.per_image[name].mean() - value) <= 1e-9 * max(1, abs(value))
        )
    ]


def paired_bootstrap(
    a: Scores, b: Scores, *, metrics: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Comparison]:
    """Compare two systems' scores of the same images in the same order (Koehn 2004).

    Every resample draws as many images as there are, with replacement; it is the same for both systems and all
    metrics. Metrics with `AdditiveStatistics`, such as BLEU with its brevity penalty, METEOR and mBLEU, are
    recomputed from the resample's sums. Other metrics are means of the images' scores, CIDEr with the document
    frequencies it was scored with.

    The interval runs from the 2.5th to the 97.5th percentile of the resampled differences. With d the difference on
    all images and d* the resampled ones, p = (1 + #{|d* - mean of d*| >= |d|}) / (1 + resamples) estimates how often
    the choice of images alone causes so large a difference (Riezler & Maxwell 2005); equal systems have p = 1.

    Raises:
        ValueError: as `resample_scores`.
    """
    scores = resample_scores([a, b], metrics=metrics, resamples=resamples, seed=seed)
    differences = scores[0] - scores[1]  # (R, metrics)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(differences, (tail, 1 - tail), axis=0)
    deviations = np.abs(differences - differences.mean(axis=0))
    comparisons = {}
    for column, name in enumerate(metrics):
        difference = a.corpus[name] - b.corpus[name]
        extreme = int((deviations[:, column] >= abs(difference)).sum())
        p = (1 + extreme) / (1 + resamples)
        interval = float(low[column]), float(high[column])
        comparisons[name] = Comparison(a.corpus[name], b.corpus[name], difference, *interval, p)
    return comparisons


def resample_scores(
    systems: Sequence[Scores], *, metrics: Sequence[str], resamples: int, seed: int
) -> Floats:
    """Corpus scores of S systems on the same R resamples of I images, (S, R, metrics).

    Raises:
        ValueError: the systems have different numbers of images, a system lacks a metric or it cannot be resampled,
            or there is less than one resample.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    for scores in systems:
        available = comparable_metrics(scores)
        if wrong := [name for name in metrics if name not in available]:
            choices = ", ".join(available) or "none"
            raise ValueError(f"no score of {wrong[0]} can be resampled; of these it can: {choices}")
    groups = [_group_metrics(scores, metrics) for scores in systems]
    sizes = {len(group.values) for system_groups in groups for group in system_groups}
    if len(sizes) != 1:
        raise ValueError(f"scores of {' and of '.join(map(str, sorted(sizes)))} images: not the same images")

    chunks: list[Floats] = []
    with progress(total=resamples, desc="resampling", unit="resample", delay=2) as bar:
        for drawn in draw_resamples(sizes.pop(), resamples=resamples, seed=seed):
            counts, chunk = _image_counts(drawn), np.empty((len(systems), len(drawn), len(metrics)))
            for system_groups, out in zip(groups, chunk, strict=True):
                for group in system_groups:
                    sums = counts @ group.values
                    for column, function in group.functions.items():
                        out[:, column] = function(sums)
            chunks.append(chunk)
            bar.update(len(drawn))
    return np.concatenate(chunks, axis=1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the same order; reject those below the level."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def draw_resamples(images: int, *, resamples: int, seed: int) -> Iterator[Ints]:
    """The image numbers of each resample, in chunks of (r, images)."""
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // images)
    for start in range(0, resamples, rows):
        yield generator.integers(0, images, (min(rows, resamples - start), images))


def _image_counts(drawn: Ints) -> Floats:
    """How often each image occurs in each resample: image numbers (r, I) -> counts (r, I)."""
    rows, images = drawn.shape
    flat = (drawn + np.arange(rows)[:, None] * images).ravel()
    return np.bincount(flat, minlength=rows * images).reshape(rows, images).astype(np.float64)


class _MetricGroup(NamedTuple):
    """Metrics that are computed from the same sums over images."""

    values: Floats  # (I, C)
    functions: dict[int, Callable[[Floats], Floats]]  # index of a metric -> its scores (r,) from sums (r, C)


def _group_metrics(scores: Scores, metrics: Sequence[str]) -> list[_MetricGroup]:
    """Metrics with the same statistics, such as BLEU-1 to BLEU-4, in one group, and all means in another."""
    groups: dict[int, _MetricGroup] = {}
    means = []
    for index, name in enumerate(metrics):
        if name in scores.statistics:
            values, function = scores.statistics[name]
            group = groups.setdefault(id(values), _MetricGroup(values.astype(np.float64), {}))
            group.functions[index] = function
        else:
            means.append(index)
    if means:
        values = np.column_stack([scores.per_image[metrics[index]] for index in means])
        functions = {
            index: partial(_mean, column=column, images=len(values)) for column, index in enumerate(means)
        }
        groups[id(values)] = _MetricGroup(values, {**functions})
    return list(groups.values())


def _mean(sums: Floats, *, column: int, images: int) -> Floats:
    return sums[:, column] / images
