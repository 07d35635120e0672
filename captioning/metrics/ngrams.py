"""N-gram counts of many token sequences as flat integer arrays, for BLEU, CIDEr and diversity.

Every n-gram has a number. A unigram's is its word's. The n-gram (w1 .. wn) has the key (number of (w1 .. wn-1),
number of wn), and its own number is the index of that key among the sorted keys of its order. Counting, looking up
and comparing the n-grams of thousands of captions then takes a few sorts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MAX_ORDER = 4
"""BLEU and CIDEr use n-grams of 1 to 4 tokens."""

_SHIFT = 32  # a key is (number of the shorter n-gram) << 32 | (number of the last word)


class OrderCounts(NamedTuple):
    """Counts of one order's n-grams: G different ones, M pairs of a sequence and an n-gram in it."""

    keys: Ints  # (G,) ascending
    sequence: Ints  # (M,) ascending
    ngram: Ints  # (M,) index into `keys`
    counts: Ints  # (M,) at least 1


@dataclass(frozen=True, eq=False)
class NgramCounts:
    """N-gram counts of S token sequences."""

    words: dict[str, int]
    lengths: Ints  # (S,) tokens
    orders: tuple[OrderCounts, ...]  # n-grams of 1 .. MAX_ORDER tokens


def count_ngrams(sequences: Sequence[Sequence[str]]) -> NgramCounts:
    """Count the n-grams of each of S token sequences, empty ones included."""
    tokens = list(chain.from_iterable(sequences))
    words = {word: number for number, word in enumerate(dict.fromkeys(tokens))}
    ids = np.fromiter(map(words.__getitem__, tokens), np.int64, len(tokens))
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    sequence = np.repeat(np.arange(len(sequences)), lengths)

    # `start` holds the positions at which an n-gram fits, `ngram` the number of the n-gram there
    orders, ngram, start, keys = [], ids, np.arange(len(ids)), np.arange(len(words))
    remaining = np.repeat(np.cumsum(lengths), lengths) - start  # tokens from a position to its sequence's end
    for order in range(1, MAX_ORDER + 1):
        if order > 1:
            fits = remaining[start] >= order
            start = start[fits]
            keys, ngram = np.unique(ngram[fits] << _SHIFT | ids[start + order - 1], return_inverse=True)
        pairs, counts = np.unique(sequence[start] * max(len(keys), 1) + ngram, return_counts=True)
        orders.append(OrderCounts(keys, *np.divmod(pairs, max(len(keys), 1)), counts.astype(np.int64)))
    return NgramCounts(words=words, lengths=lengths, orders=tuple(orders))


def index_in_sorted(keys: Ints, values: Ints) -> Ints:
    """The index of each value in the ascending `keys`, -1 for values that are not among them."""
    if not len(keys):
        return np.full(len(values), -1)
    index = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return np.where(keys[index] == values, index, -1)


class NgramTable(NamedTuple):
    """A numbering of n-grams without the sequences it was made from."""

    words: dict[str, int]
    keys: tuple[Ints, ...]  # an ascending array for each order


def translate(words: Iterable[str], keys: Iterable[Ints], table: NgramTable) -> list[Ints]:
    """Each order's n-grams of one numbering as numbers in `table`, -1 for n-grams that are not in it.

    Args:
        words: the words of the first numbering, in the order of their numbers.
        keys: its keys, an array for each order.
    """
    word = np.array([table.words.get(token, -1) for token in words], dtype=np.int64)
    numbers = [word]
    for own_keys, table_keys in zip(list(keys)[1:], table.keys[1:], strict=True):
        prefix, last = numbers[-1][own_keys >> _SHIFT], word[own_keys & ((1 << _SHIFT) - 1)]
        index = index_in_sorted(table_keys, np.maximum(prefix, 0) << _SHIFT | np.maximum(last, 0))
        numbers.append(np.where((prefix >= 0) & (last >= 0), index, -1))
    return numbers


def translate_counts(counts: NgramCounts, table: NgramTable) -> list[Ints]:
    """As `translate`, for the n-grams of `counts`."""
    return translate(counts.words, [order.keys for order in counts.orders], table)


class MaxReferenceCounts(NamedTuple):
    """For one order: the largest count of an n-gram in any one reference of an image."""

    pair: Ints  # (P,) ascending: image * G + ngram, for the n-grams in some reference of the image
    counts: Ints  # (P,) the largest count in one reference
    document_frequency: Ints  # (G,) number of images with the n-gram in some reference


class ReferenceCounts:
    """References of I images, counted once and compared with any number of candidates.

    Attributes:
        tokens: the token sequences of each image.
        num_images: I.
        per_image: (I,) references of each image.
        image: (S,) the image of each reference.
        counts: n-gram counts of all S references.
        table: their numbering.
        max_counts: a `MaxReferenceCounts` for each order.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]) -> None:
        """`references`: the token sequences of each of I images, at least one an image.

        Raises:
            ValueError: there are no images, or an image has no reference.
        """
        self.tokens = references
        self.num_images = len(references)
        self.per_image: Ints = np.fromiter(map(len, references), np.int64, len(references))
        if not self.num_images:
            raise ValueError("no images to score")
        if not self.per_image.all():
            raise ValueError(f"image number {int(np.argmin(self.per_image))} has no reference")
        self.counts = count_ngrams(list(chain.from_iterable(references)))
        self.table = NgramTable(self.counts.words, tuple(order.keys for order in self.counts.orders))
        self.image: Ints = np.repeat(np.arange(self.num_images), self.per_image)
        self.max_counts = [self._max_counts(order) for order in self.counts.orders]

    def _max_counts(self, order: OrderCounts) -> MaxReferenceCounts:
        num_ngrams = max(len(order.keys), 1)
        pair = self.image[order.sequence] * num_ngrams + order.ngram
        by_pair = np.argsort(pair, kind="stable")
        pair, first = np.unique(pair[by_pair], return_index=True)
        largest = np.maximum.reduceat(order.counts[by_pair], first) if len(pair) else order.counts[:0]
        frequency = np.bincount(pair % num_ngrams, minlength=len(order.keys)).astype(np.int64)
        return MaxReferenceCounts(pair, largest, frequency)
