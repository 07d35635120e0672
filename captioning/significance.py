"""Is one system better than another: paired bootstrap over images, Holm's correction. Knows scores, no captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from captioning.metrics import Scores
from captioning.metrics.bleu import BleuStatistics, bleu
from captioning.metrics.meteor import meteor_score
from captioning.metrics.ngrams import ORDERS, Floats, Ints

_COVERED = 0.95
_DRAWN = 1 << 21  # numbers drawn at a time: bounds memory, changes no result
RESAMPLES = 10_000
_BLEU = "Bleu_"
_METEOR = "METEOR"

METHOD = (
    "paired bootstrap over images: BLEU and METEOR recomputed from summed counts, other metrics from their means; "
    "CIDEr's document frequencies kept; 95 % percentile interval; p two-sided, of the shifted difference, +1 smoothed"
)
"""For signatures: what the numbers of `paired_bootstrap` are."""


class Comparison(NamedTuple):
    """System a against system b on one metric, on the metric's own scale."""

    a: float  # scores on all images
    b: float
    difference: float  # a - b
    low: float  # 95 % interval of the difference
    high: float
    p: float  # two-sided


def comparable(scores: Scores) -> list[str]:
    """The metrics in `scores` that a resampled corpus has a score by: BLEU, METEOR, and means over images."""
    return [
        name
        for name, value in scores.corpus.items()
        if name in scores.per_image
        and (
            name.startswith(_BLEU)
            or (name == _METEOR and scores.meteor is not None)
            or abs(scores.per_image[name].mean() - value) <= 1e-9 * max(1, abs(value))
        )
    ]


def paired_bootstrap(
    a: Scores, b: Scores, *, names: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Comparison]:
    """Compare two systems' scores of the same images in the same order (Koehn 2004).

    Every resample draws as many images as there are, with replacement, the same for both systems and for all
    metrics. BLEU of a resample comes from its summed counts and lengths, brevity penalty included, METEOR from its
    summed statistics; other metrics are means of the images' scores, CIDEr with the document frequencies that it
    was scored by.

    The interval runs from the 2.5th to the 97.5th percentile of the resampled differences. With d the difference
    on all images and d* the resampled ones, p = (1 + #{|d* - mean of d*| >= |d|}) / (1 + resamples): how often a
    difference this far from none comes of the choice of images alone (Riezler & Maxwell 2005); equal systems have
    p = 1.

    Raises:
        ValueError: as `resampled`.
    """
    differences = np.subtract(*resampled([a, b], names=names, resamples=resamples, seed=seed))  # (R, names)
    ends = (1 - _COVERED) / 2
    low, high = np.quantile(differences, (ends, 1 - ends), axis=0)
    chance = np.abs(differences - differences.mean(axis=0))
    comparisons = {}
    for column, name in enumerate(names):
        one, other = a.corpus[name], b.corpus[name]
        reached = int((chance[:, column] >= abs(one - other)).sum())
        p = (1 + reached) / (1 + resamples)
        comparisons[name] = Comparison(one, other, one - other, float(low[column]), float(high[column]), p)
    return comparisons


def resampled(systems: Sequence[Scores], *, names: Sequence[str], resamples: int, seed: int) -> Floats:
    """Corpus scores of S systems on the same resamples of I images, (S, R, names).

    Raises:
        ValueError: different numbers of images, a metric that a system has no scores of or that cannot be had
            from images, fewer than one resample.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    for scores in systems:
        if wrong := [name for name in names if name not in comparable(scores)]:
            there = ", ".join(comparable(scores)) or "none"
            raise ValueError(f"no score of {wrong[0]} can be resampled; of these it can: {there}")
    sizes = {len(scores.per_image[name]) for scores in systems for name in names}
    if len(sizes) != 1:
        raise ValueError(f"scores of {' and of '.join(map(str, sorted(sizes)))} images: not the same images")

    images = sizes.pop()
    parts = [_summed(scores, names) for scores in systems]
    columns = np.concatenate(parts, axis=1)  # (I, S C): C numbers of an image and system, side by side
    found: list[Floats] = []
    with tqdm(total=resamples, desc="resampling", leave=False, disable=None, delay=2) as progress:
        for drawn in draw(images, resamples=resamples, seed=seed):
            sums = np.split(_times(drawn) @ columns, len(systems), axis=1)  # S of (r, C)
            found.append(np.stack([_scores(each, names, images) for each in sums]))
            progress.update(len(drawn))
    return np.concatenate(found, axis=1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the order given: reject those below the level wanted."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def draw(images: int, *, resamples: int, seed: int) -> Iterator[Ints]:
    """Numbers of the images that each resample is made of, (r, images) at a time."""
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWN // images)
    for start in range(0, resamples, rows):
        yield generator.integers(0, images, (min(rows, resamples - start), images))


def _times(drawn: Ints) -> Floats:
    """How often each image is in each resample: (r, I) numbers of images -> (r, I) counts."""
    rows, images = drawn.shape
    flat = (drawn + np.arange(rows)[:, None] * images).ravel()
    return np.bincount(flat, minlength=rows * images).reshape(rows, images).astype(np.float64)


def _summed(scores: Scores, names: Sequence[str]) -> Floats:
    """What is summed over images, (I, C): a number for each metric; then BLEU's ten and METEOR's, if asked for."""
    columns = [scores.per_image[name] for name in names]
    if any(name.startswith(_BLEU) for name in names):
        if scores.bleu is None:
            raise ValueError("BLEU's counts, which a resampled corpus is scored from, are not there")
        columns += scores.bleu
    if _METEOR in names and scores.meteor is not None:
        columns.extend(scores.meteor.T)  # += would add numbers
    return np.column_stack(columns).astype(np.float64)


def _scores(sums: Floats, names: Sequence[str], images: int) -> Floats:
    """Sums (r, C) over resampled images -> corpus scores (r, names)."""
    scores = sums[:, : len(names)] / images
    orders = {column: int(name[-1]) - 1 for column, name in enumerate(names) if name.startswith(_BLEU)}
    behind = len(names)
    if orders:
        counts = sums[:, behind : behind + 2 * ORDERS + 2].astype(np.int64)
        matches, totals, lengths = np.split(counts, (ORDERS, 2 * ORDERS), axis=1)
        whole = bleu(BleuStatistics(matches, totals, *lengths.T))  # (r, ORDERS)
        scores[:, list(orders)] = whole[:, list(orders.values())]
        behind += counts.shape[1]
    if sums.shape[1] > behind:
        scores[:, names.index(_METEOR)] = meteor_score(sums[:, behind:])
    return scores
