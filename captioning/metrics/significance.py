"""Is one system better than another? Paired bootstrap over images, seeds counted by Welch's test, Holm's correction."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from captioning.metrics import Scores
from captioning.metrics.ngrams import Floats, Ints
from captioning.metrics.student_t import t_test
from captioning.utils.progress import progress

CONFIDENCE = 0.95
RESAMPLES = 10_000
_CHUNK = 1 << 21  # random numbers drawn at a time: bounds memory and changes no result

METHOD = (
    "paired bootstrap over images: BLEU, mBLEU and METEOR recomputed from summed counts, others from their means; "
    "CIDEr's document frequencies kept; 95 % percentile interval; p two-sided, of the shifted difference, +1 smoothed"
)
"""Description of `paired_bootstrap` for signatures."""

SEEDS_METHOD = (
    "difference of the means over seeds; its variance is the seeds' variance over their number for each system plus "
    "the variance over images by paired bootstrap (BLEU, mBLEU and METEOR recomputed from summed counts, CIDEr's "
    "document frequencies kept) without the part that the seeds' variance contains; Student's t with "
    "Welch-Satterthwaite degrees of freedom, 95 % interval, p two-sided"
)
"""Description of `compare_systems` for signatures, where both systems have several seeds."""


class Comparison(NamedTuple):
    """Systems a and b compared on one metric, on the metric's own scale."""

    a: float  # scores on all images
    b: float
    difference: float  # a - b
    low: float  # 95 % confidence interval of the difference
    high: float
    p: float  # two-sided
    degrees: float | None = None  # of freedom; None: only images are counted, not seeds
    at_floor: bool = False  # the resamples cannot show a smaller p


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


def compare_systems(
    systems: Sequence[Sequence[Scores]],
    *,
    metrics: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[tuple[int, int], dict[str, Comparison]]:
    """Compare every two systems (by their numbers), each given by the scores of its seeds on the same images.

    Would other seeds and other images reverse the difference D of the mean scores? By the law of total variance

        var(D) = s_a^2 / K_a + s_b^2 / K_b + max(0, v - h_a / K_a - h_b / K_b)

    with s^2 the variance of a system's K scores and v the variance of D over images (bootstrap). A seed's score on
    these images also differs from its system's mean because the seed captions some of the images better; that is in
    s^2 and in v, and counted once: h = sum over seeds of var(seed's score - mean score) / (K - 1), over images. D is
    compared with Student's t: s^2 has K - 1 degrees of freedom, the last term one less than there are images
    (Satterthwaite 1946; Welch 1947; see `t_test`).

    Simulated with equal systems, 5 % is 2 to 7 % for 2 to 5 seeds if both systems vary alike between seeds. If only
    one of them varies, it rises to 8 % with 3 seeds and 12 % with 2 (a known weakness of Welch's test).

    If a system has one seed, only the images are resampled, as in `paired_bootstrap`; that says nothing about other
    seeds.

    Raises:
        ValueError: as `resample_scores`.
    """
    runs = [scores for system in systems for scores in system]
    resampled = iter(resample_scores(runs, metrics=metrics, resamples=resamples, seed=seed))
    samples = [_system_sample(system, [next(resampled) for _ in system], metrics) for system in systems]
    images = _count_images(runs[0])
    return {
        (first, second): {
            name: Comparison(*values)
            for name, values in zip(metrics, _compare(samples[first], samples[second], images), strict=True)
        }
        for first, second in itertools.combinations(range(len(systems)), 2)
    }


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
    return compare_systems([[a], [b]], metrics=metrics, resamples=resamples, seed=seed)[0, 1]


class _SystemSample(NamedTuple):
    """A system's scores in M metrics and how they vary."""

    seeds: int
    scores: Floats  # (M,), means over seeds
    resampled: Floats  # (R, M), means over seeds
    seed_variance: Floats  # (M,), of `scores` over seeds: s^2 / K; 0 with one seed
    image_share: Floats  # (M,), the part of `seed_variance` that other images would change: h / K


def _system_sample(
    runs: Sequence[Scores], resampled: Sequence[Floats], metrics: Sequence[str]
) -> _SystemSample:
    """From the runs of a system and their scores on resamples, each (R, M)."""
    scores = np.array([[run.corpus[name] for name in metrics] for run in runs])  # (K, M)
    means, freedom = np.mean(resampled, axis=0), max(1, len(runs) - 1)
    seed_variance = scores.var(axis=0) / freedom
    image_share = np.mean([(run - means).var(axis=0) for run in resampled], axis=0) / freedom
    return _SystemSample(len(runs), scores.mean(axis=0), means, seed_variance, image_share)


def _compare(a: _SystemSample, b: _SystemSample, images: int) -> Iterator[tuple[Any, ...]]:
    """The values of a `Comparison` for each metric."""
    difference, resampled = a.scores - b.scores, a.resampled - b.resampled
    if min(a.seeds, b.seeds) > 1:
        over_images = np.maximum(0, resampled.var(axis=0) - a.image_share - b.image_share)
        components = [
            (a.seed_variance, a.seeds - 1),
            (b.seed_variance, b.seeds - 1),
            (over_images, max(1, images - 1)),
        ]
        p, margin, degrees = t_test(difference, components)
        low, high = difference - margin, difference + margin
        columns = [a.scores, b.scores, difference, low, high, p, degrees]
        return zip(*(column.tolist() for column in columns), strict=True)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail), axis=0)
    extreme = (np.abs(resampled - resampled.mean(axis=0)) >= np.abs(difference)).sum(axis=0)
    p = (1 + extreme) / (1 + len(resampled))
    columns = [a.scores, b.scores, difference, low, high, p]
    return zip(
        *(column.tolist() for column in columns), [None] * len(p), (extreme == 0).tolist(), strict=True
    )


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


def _count_images(scores: Scores) -> int:
    statistics = (values for values, _ in scores.statistics.values())
    return len(next(itertools.chain(scores.per_image.values(), statistics)))


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
