"""Counts of n-grams over many token sequences, as flat arrays. Knows no metric.

An n-gram is a number: the n-gram (w1 .. wn) is the pair (number of (w1 .. wn-1), number of wn), and pairs are
numbered in sorted order. Counting, looking up and comparing thousands of captions are then a few sorts.
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

ORDERS = 4
"""BLEU and CIDEr look at n-grams of 1 to 4 tokens."""

_SHIFT = 32  # a key is (number of the shorter n-gram) << 32 | (number of the word)


class Order(NamedTuple):
    """The n-grams of one length. G differ; M pairs of a sequence and an n-gram in it, sequences ascending."""

    keys: Ints  # (G,) ascending
    sequence: Ints  # (M,)
    gram: Ints  # (M,) index into `keys`
    times: Ints  # (M,) at least 1


@dataclass(frozen=True, eq=False)
class Counts:
    """N-gram counts of S token sequences."""

    words: dict[str, int]
    lengths: Ints  # (S,) tokens
    orders: tuple[Order, ...]  # n-grams of 1 .. ORDERS tokens


def count(sequences: Sequence[Sequence[str]]) -> Counts:
    """Count the n-grams of each of S token sequences, empty ones included."""
    tokens = list(chain.from_iterable(sequences))
    words = {word: number for number, word in enumerate(dict.fromkeys(tokens))}
    ids = np.fromiter(map(words.__getitem__, tokens), np.int64, len(tokens))
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    sequence = np.repeat(np.arange(len(sequences)), lengths)

    # `gram` is the n-gram that starts at each position where one fits, `start` those positions
    orders, gram, start, keys = [], ids, np.arange(len(ids)), np.arange(len(words))
    left = np.repeat(np.cumsum(lengths), lengths) - start  # tokens from a position to its sequence's end
    for size in range(1, ORDERS + 1):
        if size > 1:
            fits = left[start] >= size
            start = start[fits]
            keys, gram = np.unique(gram[fits] << _SHIFT | ids[start + size - 1], return_inverse=True)
        pairs, counts = np.unique(sequence[start] * max(len(keys), 1) + gram, return_counts=True)
        orders.append(Order(keys, *np.divmod(pairs, max(len(keys), 1)), counts.astype(np.int64)))
    return Counts(words=words, lengths=lengths, orders=tuple(orders))


def find(keys: Ints, wanted: Ints) -> Ints:
    """Index of each `wanted` in the ascending `keys`, -1 where it is not among them."""
    if not len(keys):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)


def translate(words: Iterable[str], orders: Iterable[Ints], to: Table) -> list[Ints]:
    """For each order, the number in `to` of every n-gram of another numbering, -1 where `to` has none.

    Args:
        words: the other numbering's words, in the order of their numbers.
        orders: its keys, an array an order.
    """
    word = np.array([to.words.get(token, -1) for token in words], dtype=np.int64)
    numbers = [word]
    for keys, known in zip(list(orders)[1:], to.keys[1:], strict=True):
        shorter, last = numbers[-1][keys >> _SHIFT], word[keys & ((1 << _SHIFT) - 1)]
        found = find(known, np.maximum(shorter, 0) << _SHIFT | np.maximum(last, 0))
        numbers.append(np.where((shorter >= 0) & (last >= 0), found, -1))
    return numbers


class Table(NamedTuple):
    """A numbering of n-grams on its own, without the sequences it came from."""

    words: dict[str, int]
    keys: tuple[Ints, ...]  # an ascending array an order


def table(counts: Counts) -> Table:
    return Table(counts.words, tuple(order.keys for order in counts.orders))


class ReferenceCounts:
    """References of I images, counted once and compared with any number of candidates."""

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]) -> None:
        """`references`: for each of I images its token sequences, at least one."""
        self.tokens = references
        self.images = len(references)
        self.per_image: Ints = np.fromiter(map(len, references), np.int64, len(references))  # (I,)
        if not self.images:
            raise ValueError("no images to score")
        if not self.per_image.all():
            raise ValueError(f"image number {int(np.argmin(self.per_image))} has no reference")
        self.counts = count(list(chain.from_iterable(references)))
        self.table = table(self.counts)
        self.image: Ints = np.repeat(np.arange(self.images), self.per_image)  # (S,) image of each reference
        self.highest = [self._highest(order) for order in self.counts.orders]

    def _highest(self, order: Order) -> Highest:
        """The largest count of each n-gram in any one reference of an image."""
        grams = max(len(order.keys), 1)
        pair = self.image[order.sequence] * grams + order.gram
        by_pair = np.argsort(pair, kind="stable")
        pair, first = np.unique(pair[by_pair], return_index=True)
        largest = np.maximum.reduceat(order.times[by_pair], first) if len(pair) else order.times[:0]
        return Highest(pair, largest, np.bincount(pair % grams, minlength=len(order.keys)).astype(np.int64))


class Highest(NamedTuple):
    """What the references of an image say about an n-gram, for one order."""

    pair: Ints  # (P,) ascending: image * G + gram, for each n-gram that some reference of the image has
    times: Ints  # (P,) its largest count in one reference
    images: Ints  # (G,) in how many images' references it occurs
