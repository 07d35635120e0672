"""Rewards of sampled captions, as ids: CIDEr-D and BLEU-4 against the image's references.

An n-gram is stored as one int64 with its ids as digits. The references are counted once; scoring a batch is then a few
array operations, without loops over images, captions or n-grams.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from captioning.errors import UserError
from captioning.loaders.captions import EncodedCaptions
from captioning.metrics.ngrams import MAX_ORDER, Floats, Ints, index_in_sorted
from captioning.utils.progress import progress

_NO_NGRAM = np.iinfo(np.int64).max  # sorts after all n-grams of a sequence
_SIGMA = 6.0  # of CIDEr-D's length penalty, in bigrams
_SCALE = 10.0
_CAPTIONS_PER_CHUNK = 1 << 16  # bounds the memory of counting


class Rewards(NamedTuple):
    """Rewards of B x K captions."""

    cider: Floats  # (B, K) CIDEr-D as published, times 10: about 0 to 10
    bleu: Floats  # (B, K) BLEU-4 of the caption, 0 to 1


class NGrams(NamedTuple):
    """The distinct n-grams of each sequence."""

    sequence: Ints  # (M,) ascending
    key: Ints  # (M,) ascending within a sequence
    counts: Ints  # (M,) at least 1


def count(words: Ints, lengths: Ints, *, base: int) -> NGrams:
    """The n-grams of 1 to 4 words of each sequence.

    Args:
        words: (S, T) ids from 0 to `base` - 2.
        lengths: (S,) number of words of each sequence.
        base: of the keys; its fourth power fits an int64.
    """
    digits = words.astype(np.int64) + 1  # no leading zeros: n-grams of different lengths differ
    orders, ngram = [], digits
    for order in range(1, MAX_ORDER + 1):
        if order > 1:
            ngram = ngram[:, :-1] * base + digits[:, order - 1 :]
        fits = np.arange(order, order + ngram.shape[1]) <= lengths[:, None]
        orders.append(np.where(fits, ngram, _NO_NGRAM))
    keys = np.concatenate(orders, 1)
    keys.sort(1)
    is_first = keys != _NO_NGRAM
    is_first[:, 1:] &= keys[:, 1:] != keys[:, :-1]
    position = np.flatnonzero(is_first)
    sequence = position // keys.shape[1] if keys.size else position
    row_end = np.arange(len(keys)) * keys.shape[1] + (keys != _NO_NGRAM).sum(1)
    counts = np.minimum(np.append(position[1:], keys.size), row_end[sequence]) - position
    return NGrams(sequence, keys.ravel()[position], counts)


class Matched(NamedTuple):
    """Counts of the U n-grams in B images' references, sorted by image and length, and in K captions of each image."""

    segment: Ints  # (U,) ascending: image x MAX_ORDER + length of the n-gram - 1
    idf: Floats  # (U,)
    in_references: Floats  # (U, R) count in each reference
    in_captions: Floats  # (U, K) count in each caption


class References:
    """N-gram counts of a split's references, and their document frequencies.

    `<end>` counts as a word of references and captions, so a caption that breaks off matches less (a reference cut at
    the length limit has none); `<start>` does not. Equal to the CIDEr-D of pycocoevalcap's class `Cider` given the ids
    as words and these document frequencies.
    """

    def __init__(self, captions: EncodedCaptions, *, vocabulary_size: int) -> None:
        """Raises UserError if the vocabulary is too large for an n-gram of four ids in an int64."""
        self.base = vocabulary_size + 1
        if self.base**MAX_ORDER > _NO_NGRAM:
            most = int(_NO_NGRAM ** (1 / MAX_ORDER)) - 2
            raise UserError(
                f"self-critical training takes at most {most:,} words, the vocabulary has {vocabulary_size:,}; "
                "raise vocabulary.min_count"
            )
        self.first = captions.image_offsets
        self.images = len(captions.image_offsets) - 1
        self.lengths = np.diff(captions.caption_offsets) - 1  # (S,) without <start>
        chunks = list(self._count_chunks(captions))
        caption, key, counts = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
        del chunks
        self.keys, ngram = np.unique(key, return_inverse=True)  # (G,)
        self.order = np.searchsorted(self.base ** np.arange(1, MAX_ORDER), self.keys, side="right")  # (G,)

        # sort by image, then n-gram; captions are sorted by image already
        image = np.repeat(np.arange(self.images), np.diff(self.first))[caption]
        pair = image * len(self.keys) + ngram
        by_pair = np.argsort(pair, kind="stable")
        self.ngram = ngram[by_pair].astype(np.int32)
        self.caption = caption[by_pair].astype(np.int32)
        self.counts = counts[by_pair].astype(np.int32)
        self.begin = np.searchsorted(pair[by_pair], np.arange(self.images + 1) * len(self.keys))

        documents = np.bincount(self.ngram[_is_new(pair[by_pair])], minlength=len(self.keys))
        self.unseen_idf = np.log(float(self.images))  # of an n-gram that no reference contains
        self.idf = self.unseen_idf - np.log(documents)  # (G,)
        squares = np.bincount(
            caption * MAX_ORDER + self.order[ngram],
            (counts * self.idf[ngram]) ** 2,
            minlength=len(self.lengths) * MAX_ORDER,
        )
        self.norms = np.sqrt(squares).reshape(-1, MAX_ORDER)  # (S, MAX_ORDER)

    def _count_chunks(self, captions: EncodedCaptions) -> Iterator[NGrams]:
        starts = range(0, len(self.lengths), _CAPTIONS_PER_CHUNK)
        for low in progress(starts, desc="counting references", unit="chunk", delay=2):
            lengths = self.lengths[low : low + _CAPTIONS_PER_CHUNK]
            valid = np.arange(lengths.max()) < lengths[:, None]
            words = np.zeros(valid.shape, np.int64)
            offsets = captions.caption_offsets[low : low + len(lengths) + 1]
            words[valid] = np.delete(captions.ids[offsets[0] : offsets[-1]], offsets[:-1] - offsets[0])
            ngrams = count(words, lengths, base=self.base)
            yield ngrams._replace(sequence=ngrams.sequence + low)

    def score(self, images: Ints, words: Ints, lengths: Ints) -> Rewards:
        """Rewards of captions of the split's images.

        Args:
            images: (B,) numbers of the images.
            words: (B, K, T) ids without `<start>`.
            lengths: (B, K) number of words, including `<end>` if it was produced.
        """
        shape = words.shape
        ngrams = count(words.reshape(-1, shape[2]), lengths.ravel(), base=self.base)
        number = np.empty_like(ngrams.key)  # -1: in no reference of any image
        by_key = np.argsort(ngrams.key)  # neighbouring keys are close in the cache
        number[by_key] = index_in_sorted(self.keys, ngrams.key[by_key])
        idf = np.where(number >= 0, self.idf[number], self.unseen_idf)
        order = np.searchsorted(self.base ** np.arange(1, MAX_ORDER), ngrams.key, side="right")
        squares = np.bincount(
            ngrams.sequence * MAX_ORDER + order,
            (ngrams.counts * idf) ** 2,
            minlength=lengths.size * MAX_ORDER,
        )
        norms = np.sqrt(squares).reshape(*shape[:2], MAX_ORDER)
        matched = self._match(images, ngrams, number, width=shape[1])
        return Rewards(self._cider(images, matched, norms, lengths), self._bleu(images, matched, lengths))

    def _match(self, images: Ints, ngrams: NGrams, number: Ints, *, width: int) -> Matched:
        begin, counts = self.begin[images], self.begin[images + 1] - self.begin[images]
        row = np.repeat(np.arange(len(images)), counts)  # of the batch
        at = np.arange(len(row)) + np.repeat(begin - np.cumsum(counts) + counts, counts)
        pair = row * len(self.keys) + self.ngram[at]
        is_new = _is_new(pair)
        pairs, place = pair[is_new], np.cumsum(is_new) - 1
        first = self.first[images]
        most = int((self.first[images + 1] - first).max())
        in_references = np.zeros((len(pairs), most))
        in_references[place, self.caption[at] - first[row]] = self.counts[at]
        known = np.flatnonzero(number >= 0)
        image, sequence = np.divmod(ngrams.sequence[known], width)
        place = index_in_sorted(pairs, image * len(self.keys) + number[known])
        matches = place >= 0
        in_captions = np.zeros((len(pairs), width))
        in_captions[place[matches], sequence[matches]] = ngrams.counts[known[matches]]
        image, ngram = np.divmod(pairs, len(self.keys))
        return Matched(image * MAX_ORDER + self.order[ngram], self.idf[ngram], in_references, in_captions)

    def _cider(self, images: Ints, matched: Matched, norms: Floats, lengths: Ints) -> Floats:
        """CIDEr-D (Vedantam et al. 2015), (B, K); `norms` (B, K, MAX_ORDER) of the captions."""
        references, present = self._references_of(images)
        in_references, in_captions = matched.in_references[:, None], matched.in_captions[:, :, None]
        products = np.minimum(in_captions, in_references)  # (U, K, R)
        products *= in_references * np.square(matched.idf)[:, None, None]
        dot = _segment_sums(products, matched.segment, len(images))  # (B, MAX_ORDER, K, R)
        norms = norms.transpose(0, 2, 1)[..., None] * self.norms[references].transpose(0, 2, 1)[:, :, None]
        cosines = np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0)
        # the published code measures length in bigrams
        gap = np.maximum(lengths - 1, 0)[..., None] - np.maximum(self.lengths[references] - 1, 0)[:, None]
        similarity = cosines.mean(1) * np.exp(-(gap**2) / (2 * _SIGMA**2)) * present[:, None]
        return _SCALE * similarity.sum(2) / present.sum(1)[:, None]

    def _bleu(self, images: Ints, matched: Matched, lengths: Ints) -> Floats:
        """BLEU-4 of each caption (B, K), add-one smoothed from bigrams on.

        Papineni et al. 2002 with the length of the closest reference, the shorter of two; smoothing of Lin and Och
        2004, so that captions without a common 4-gram still differ. Without a common word it is 0.
        """
        references, present = self._references_of(images)
        clipped = np.minimum(matched.in_captions, matched.in_references.max(1, keepdims=True))
        matches = _segment_sums(clipped, matched.segment, len(images))  # (B, MAX_ORDER, K)
        smoothing = np.minimum(np.arange(MAX_ORDER), 1)[:, None]
        totals = np.maximum(lengths[:, None] - np.arange(MAX_ORDER)[:, None], 1)
        precision = ((matches + smoothing) / (totals + smoothing)).prod(1) ** (1 / MAX_ORDER)
        reference_lengths = self.lengths[references][:, None]  # (B, 1, R)
        gap = np.where(present[:, None], np.abs(reference_lengths - lengths[..., None]), _NO_NGRAM >> 32)
        longest = int(self.lengths.max()) + 1
        closest = (gap * longest + reference_lengths).min(2) % longest  # of the smallest (gap, length)
        return precision * np.exp(np.minimum(1 - closest / np.maximum(lengths, 1), 0))

    def _references_of(self, images: Ints) -> tuple[Ints, np.ndarray]:
        """Numbers (B, R) of the images' references, and a mask of those that exist."""
        counts = self.first[images + 1] - self.first[images]
        present = np.arange(counts.max()) < counts[:, None]
        return np.where(present, self.first[images][:, None] + np.arange(counts.max()), 0), present


def _is_new(values: Ints) -> np.ndarray:
    """(M,) bool: whether a value differs from the one before it."""
    return np.append(np.ones(min(len(values), 1), bool), values[1:] != values[:-1])


def _segment_sums(values: Floats, segment: Ints, images: int) -> Floats:
    """(U, ...) -> (B, MAX_ORDER, ...): sums over equal `segment`, which is ascending."""
    begin = np.flatnonzero(_is_new(segment))
    sums = np.zeros((images * MAX_ORDER, *values.shape[1:]))
    sums[segment[begin]] = np.add.reduceat(values, begin, axis=0)
    return sums.reshape(images, MAX_ORDER, *values.shape[1:])
