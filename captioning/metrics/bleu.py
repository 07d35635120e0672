"""BLEU-1 to BLEU-4 with the closest reference length (Papineni et al. 2002).

The constants and the brevity penalty are coco-caption's, so that scores equal published ones.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from captioning.metrics.base import Metric, MetricInput, MetricScore, score_from_statistics
from captioning.metrics.ngrams import MAX_ORDER, Floats, Ints, index_in_sorted, translate_counts

_TINY, _SMALL = 1e-15, 1e-9  # coco-caption's: zero matches give nearly 0 and no division by zero

NUM_STATISTICS = 2 * MAX_ORDER + 2
"""Columns of BLEU's statistics: clipped n-gram matches of 4 orders, candidate n-grams of 4 orders, candidate length,
closest reference length."""


class Bleu(Metric):
    """Corpus BLEU of n-grams up to `order`."""

    description = "corpus level, closest reference length, coco-caption's constants"

    def __init__(self, order: int) -> None:
        self.name = f"BLEU-{order}"
        self.order = order

    def score(self, captions: MetricInput) -> MetricScore:
        return score_from_statistics(
            captions.shared(bleu_statistics), partial(bleu_of_order, order=self.order)
        )


BLEU = tuple(Bleu(order) for order in range(1, MAX_ORDER + 1))


def bleu_statistics(captions: MetricInput) -> Ints:
    """Statistics of each image, (I, NUM_STATISTICS); their sums over images give corpus BLEU."""
    references, counts = captions.references, captions.counts
    matches = np.zeros((references.num_images, MAX_ORDER), dtype=np.int64)
    numbers = translate_counts(counts, references.table)
    for column, (order, number, maximum) in enumerate(
        zip(counts.orders, numbers, references.max_counts, strict=True)
    ):
        ngram = number[order.ngram]
        num_ngrams = max(len(maximum.document_frequency), 1)
        index = index_in_sorted(maximum.pair, order.sequence * num_ngrams + ngram)
        hit = (ngram >= 0) & (index >= 0)
        clipped = np.minimum(order.counts[hit], maximum.counts[index[hit]])
        np.add.at(matches[:, column], order.sequence[hit], clipped)

    first = np.cumsum(references.per_image) - references.per_image
    rank, longest = closest_length_rank(counts.lengths[references.image], references.counts.lengths)
    closest = np.minimum.reduceat(rank, first) % longest
    return pack_statistics(matches, counts.lengths, closest)


def closest_length_rank(candidate: Ints, reference: Ints) -> tuple[Ints, int]:
    """Numbers whose minimum modulo the second result is the closest reference length, the shorter of two."""
    longest = int(reference.max(initial=0)) + 1
    return np.abs(candidate - reference) * longest + reference, longest


def pack_statistics(matches: Ints, lengths: Ints, closest: Ints) -> Ints:
    """The columns of BLEU's statistics, (..., NUM_STATISTICS), from matches (..., 4) and two lengths (...)."""
    totals = np.maximum(lengths[..., None] - np.arange(MAX_ORDER), 0)
    return np.concatenate([matches, totals, lengths[..., None], closest[..., None]], -1)


def bleu(statistics: Ints | Floats) -> Floats:
    """BLEU-1 to BLEU-4 in 0..1, (..., 4), of statistics (..., NUM_STATISTICS) summed over some images."""
    matches, totals = statistics[..., :MAX_ORDER], statistics[..., MAX_ORDER:-2]
    precision = (matches + _TINY) / (totals + _SMALL)
    mean = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, MAX_ORDER + 1))
    ratio = (statistics[..., -2] + _TINY) / (statistics[..., -1] + _SMALL)
    # exp(1 - 1e24), of an empty candidate, is a clean 0; the minimum leaves long captions unpunished
    return mean * np.exp(np.minimum(1 - 1 / ratio, 0))[..., None]


def bleu_of_order(statistics: Ints | Floats, *, order: int) -> Floats:
    """One order's BLEU, (...), of statistics (..., NUM_STATISTICS)."""
    return bleu(statistics)[..., order - 1]
