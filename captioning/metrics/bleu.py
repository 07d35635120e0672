"""BLEU-1..4 with the closest reference length (Papineni et al. 2002). Knows counts, no text.

The tiny numbers and the brevity penalty are coco-caption's, so that figures equal published ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from captioning.metrics.ngrams import ORDERS, Counts, Floats, Ints, ReferenceCounts, find, translate

_TINY, _SMALL = 1e-15, 1e-9  # coco-caption: a count of none gives nearly 0 and no division by zero


class BleuStatistics(NamedTuple):
    """What BLEU is computed from. Sums over images give corpus BLEU: add up rows, resampled or not."""

    matches: Ints  # (..., 4) n-grams found in a reference, clipped to its largest count in one
    totals: Ints  # (..., 4) n-grams of the candidate
    length: Ints  # (...) tokens of the candidate
    reference: Ints  # (...) tokens of the reference closest in length, the shorter one of two

    def sums(self) -> BleuStatistics:
        """Statistics of I images -> of the corpus."""
        return BleuStatistics(*(part.sum(axis=0) for part in self))

    def numbers(self) -> Ints:
        """Side by side, (..., 10): what is added up where other numbers are too."""
        return np.concatenate(
            [self.matches, self.totals, self.length[..., None], self.reference[..., None]], -1
        )


def of_numbers(numbers: Floats | Ints) -> BleuStatistics:
    """The statistics of which these are the `numbers`, (..., 10)."""
    counts = numbers.astype(np.int64)
    return BleuStatistics(counts[..., :ORDERS], counts[..., ORDERS:-2], counts[..., -2], counts[..., -1])


def statistics(references: ReferenceCounts, candidates: Counts) -> BleuStatistics:
    """Statistics of each of I images; candidate i belongs to image i."""
    matches = np.zeros((references.images, ORDERS), dtype=np.int64)
    numbers = translate(candidates.words, [order.keys for order in candidates.orders], references.table)
    for size, (order, number, highest) in enumerate(
        zip(candidates.orders, numbers, references.highest, strict=True)
    ):
        gram = number[order.gram]
        at = find(highest.pair, order.sequence * max(len(highest.images), 1) + gram)
        hit = (gram >= 0) & (at >= 0)
        clipped = np.minimum(order.times[hit], highest.times[at[hit]])
        np.add.at(matches[:, size], order.sequence[hit], clipped)

    length = candidates.lengths
    gap = np.abs(references.counts.lengths - length[references.image])
    # the closest length, and of two equally close the shorter: the least (gap, length) of each image
    first = np.cumsum(references.per_image) - references.per_image
    longest = references.counts.lengths.max(initial=0) + 1
    closest = np.minimum.reduceat(gap * longest + references.counts.lengths, first) % longest
    totals = np.maximum(length[:, None] - np.arange(ORDERS), 0)
    return BleuStatistics(matches, totals, length, closest)


def bleu(sums: BleuStatistics) -> Floats:
    """BLEU-1..4 in 0..1, (..., 4), from statistics of images, corpora or resampled corpora (...)."""
    precision = (sums.matches + _TINY) / (sums.totals + _SMALL)
    mean = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, ORDERS + 1))
    ratio = (sums.length + _TINY) / (sums.reference + _SMALL)
    # exp(1 - 1e24), as for an empty candidate, is a clean 0; the minimum keeps long captions at 1
    return mean * np.exp(np.minimum(1 - 1 / ratio, 0))[..., None]
