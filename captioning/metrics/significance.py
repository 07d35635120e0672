"""Is one system better than another: paired bootstrap over images, Holm's correction. Knows scores, no captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from captioning.metrics import Scores
from captioning.metrics.bleu import bleu, of_numbers
from captioning.metrics.ngrams import Floats, Ints

_COVERED = 0.95
_DRAWN = 1 << 21  # numbers drawn at a time: bounds memory, changes no result
RESAMPLES = 10_000
_BLEU = "BLEU-"

METHOD = (
    "paired bootstrap over images: BLEU, mBLEU and METEOR recomputed from summed counts, others from their means; "
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
    """The metrics in `scores` that a resampled corpus has a score by: of numbers that add up, or a mean."""
    return [
        name
        for name, value in scores.corpus.items()
        if name in scores.summed
        or (name.startswith(_BLEU) and scores.bleu is not None)
        or (
            name in scores.per_image
            and abs(scores.per_image[name].mean() - value) <= 1e-9 * max(1, abs(value))
        )
    ]


def paired_bootstrap(
    a: Scores, b: Scores, *, names: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Comparison]:
    """Compare two systems' scores of the same images in the same order (Koehn 2004).

    Every resample draws as many images as there are, with replacement, the same for both systems and for all
    metrics. BLEU of a resample comes from its summed counts and lengths, brevity penalty included, so do mBLEU and the
    oracle's BLEU, and METEOR from its summed statistics; other metrics are means of the images' scores, CIDEr with
    the document frequencies that it was scored by.

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
        there = comparable(scores)
        if wrong := [name for name in names if name not in there]:
            known = ", ".join(there) or "none"
            raise ValueError(f"no score of {wrong[0]} can be resampled; of these it can: {known}")
    parts = [_parts(scores, names) for scores in systems]
    sizes = {len(part.numbers) for own in parts for part in own}
    if len(sizes) != 1:
        raise ValueError(f"scores of {' and of '.join(map(str, sorted(sizes)))} images: not the same images")

    images = sizes.pop()
    # of each system (I, C): all that is summed of an image
    columns = [np.concatenate([part.numbers for part in own], axis=1, dtype=np.float64) for own in parts]
    ends = [np.cumsum([part.numbers.shape[1] for part in own])[:-1] for own in parts]
    found: list[Floats] = []
    with tqdm(total=resamples, desc="resampling", leave=False, disable=None, delay=2) as progress:
        for drawn in draw(images, resamples=resamples, seed=seed):
            times, scored = _times(drawn), np.empty((len(systems), len(drawn), len(names)))
            for own, numbers, end, to in zip(parts, columns, ends, scored, strict=True):
                for part, sums in zip(own, np.split(times @ numbers, end, axis=1), strict=True):
                    to[:, part.places] = part.score(sums)
            found.append(scored)
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


class _Part(NamedTuple):
    """Some of the metrics: what they are computed from, and how."""

    places: list[int]  # among the names asked for
    numbers: np.ndarray  # (I, C)
    score: Callable[[Floats], Floats]  # their sums over resampled images (r, C) -> (r, places)


def _column(score: Callable[[Floats], Floats], sums: Floats) -> Floats:
    return score(sums)[:, None]


def _parts(scores: Scores, names: Sequence[str]) -> list[_Part]:
    """All metrics of one system. Those of BLEU are computed from the same numbers, means from a number each."""
    parts, orders, means = [], dict[int, int](), list[int]()
    for place, name in enumerate(names):
        if name in scores.summed:
            numbers, score = scores.summed[name]
            parts.append(_Part([place], numbers, partial(_column, score)))
        elif name.startswith(_BLEU):
            orders[place] = int(name[-1]) - 1
        else:
            means.append(place)
    if orders and scores.bleu is not None:
        chosen = list(orders.values())
        parts.append(
            _Part(list(orders), scores.bleu.numbers(), lambda sums: bleu(of_numbers(sums))[:, chosen])
        )
    if means:
        each = np.column_stack([scores.per_image[names[place]] for place in means])
        parts.append(_Part(means, each, lambda sums: sums / len(each)))
    return parts
