"""What captions are worth, compared with an image's references: CIDEr-D and BLEU-4. Knows ids, no text and no model.

An n-gram is one int64, its words as digits. The references are counted once; a batch of samples is then a few
array operations, with no loop over images, captions or n-grams.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from captioning.errors import UserError
from captioning.loaders.batches import EncodedCaptions
from captioning.metrics.ngrams import MAX_ORDER, Floats, Ints, index_in_sorted

_NOTHING = np.iinfo(np.int64).max  # behind a sequence's n-grams, and greater than all of them
_SIGMA = 6.0  # of CIDEr-D's length penalty, in bigrams
_SCALE = 10.0
_TOGETHER = 1 << 16  # captions that are counted at a time: bounds the memory it takes


class Rewards(NamedTuple):
    """What B x K captions are worth."""

    cider: Floats  # (B, K) CIDEr-D as published, times 10: about 0 to 10
    bleu: Floats  # (B, K) BLEU-4 of the caption, 0 to 1


class Grams(NamedTuple):
    """The n-grams of sequences, each once a sequence."""

    sequence: Ints  # (M,) ascending
    key: Ints  # (M,) ascending within a sequence
    times: Ints  # (M,) at least 1


def count(words: Ints, lengths: Ints, *, base: int) -> Grams:
    """N-grams of 1 to 4 words.

    Args:
        words: (S, T) ids from 0 to `base` - 2.
        lengths: (S,) how many of a row's words count.
        base: that of the keys; its fourth power fits an int64.
    """
    digits = words.astype(np.int64) + 1  # no leading zeros: n-grams of different lengths differ
    parts, gram = [], digits
    for size in range(1, MAX_ORDER + 1):
        if size > 1:
            gram = gram[:, :-1] * base + digits[:, size - 1 :]
        fits = np.arange(size, size + gram.shape[1]) <= lengths[:, None]
        parts.append(np.where(fits, gram, _NOTHING))
    keys = np.concatenate(parts, 1)
    keys.sort(1)
    new = keys != _NOTHING
    new[:, 1:] &= keys[:, 1:] != keys[:, :-1]
    position = np.flatnonzero(new)
    sequence = position // keys.shape[1] if keys.size else position
    behind = np.arange(len(keys)) * keys.shape[1] + (keys != _NOTHING).sum(1)  # each row's n-grams
    times = np.minimum(np.append(position[1:], keys.size), behind[sequence]) - position
    return Grams(sequence, keys.ravel()[position], times)


class Matched(NamedTuple):
    """U n-grams of B images' references, an image's own together, shorter ones first; beside K captions of each."""

    segment: Ints  # (U,) ascending: image x MAX_ORDER + length of the n-gram - 1
    rarity: Floats  # (U,)
    theirs: Floats  # (U, R) times in each reference
    ours: Floats  # (U, K) times in each caption


class References:
    """The references of all images of a split, counted, with the split's document frequencies.

    `<end>` is a word of theirs, as it is of the captions compared with them: one that breaks off matches less
    (a reference that the length limit cut has none). `<start>` is not. Equal to pycocoevalcap's CIDEr-D where
    that is given the ids as words and these document frequencies.
    """

    def __init__(self, captions: EncodedCaptions, *, vocabulary_size: int) -> None:
        """Raises UserError where four words of such a vocabulary do not fit one number."""
        self.base = vocabulary_size + 1
        if self.base**MAX_ORDER > _NOTHING:
            most = int(_NOTHING ** (1 / MAX_ORDER)) - 2
            raise UserError(
                f"self-critical training knows at most {most:,} words, the vocabulary has {vocabulary_size:,}; "
                "raise vocabulary.min_count"
            )
        self.first = captions.first
        self.images = len(captions.first) - 1
        self.lengths = np.diff(captions.start) - 1  # (S,) without <start>
        parts = list(self._parts(captions))
        caption, key, times = (np.concatenate(each) for each in zip(*parts, strict=True))
        del parts
        self.keys, gram = np.unique(key, return_inverse=True)  # (G,)
        self.order = np.searchsorted(self.base ** np.arange(1, MAX_ORDER), self.keys, side="right")  # (G,)

        # those of an image together, by n-gram; captions stand by image as it is
        per_image = np.diff(self.first)
        image = np.repeat(np.arange(self.images), per_image)[caption]
        pair = image * len(self.keys) + gram
        by_pair = np.argsort(pair, kind="stable")
        self.gram = gram[by_pair].astype(np.int32)
        self.caption = caption[by_pair].astype(np.int32)
        self.times = times[by_pair].astype(np.int32)
        self.begin = np.searchsorted(pair[by_pair], np.arange(self.images + 1) * len(self.keys))

        documents = np.bincount(self.gram[_changes(pair[by_pair])], minlength=len(self.keys))
        self.unseen = np.log(float(self.images))  # the rarity of an n-gram that no reference has
        self.rarity = self.unseen - np.log(documents)  # (G,)
        weight = times * self.rarity[gram]
        square = np.bincount(
            caption * MAX_ORDER + self.order[gram], weight**2, minlength=len(self.lengths) * MAX_ORDER
        )
        self.norms = np.sqrt(square).reshape(-1, MAX_ORDER)  # (S, MAX_ORDER)

    def _parts(self, captions: EncodedCaptions) -> Iterator[Grams]:
        total = len(self.lengths)
        for low in tqdm(range(0, total, _TOGETHER), desc="counting references", disable=None, delay=2):
            lengths = self.lengths[low : low + _TOGETHER]
            inside = np.arange(lengths.max()) < lengths[:, None]
            words = np.zeros(inside.shape, np.int64)
            own = captions.words[captions.start[low] : captions.start[low + len(lengths)]]
            without = np.delete(own, captions.start[low : low + len(lengths)] - captions.start[low])
            words[inside] = without
            found = count(words, lengths, base=self.base)
            yield found._replace(sequence=found.sequence + low)

    def score(self, images: Ints, words: Ints, lengths: Ints) -> Rewards:
        """What captions of the split's images are worth.

        Args:
            images: (B,) numbers of the images.
            words: (B, K, T) ids; no `<start>`.
            lengths: (B, K) words that count, `<end>` among them where it was produced.
        """
        shape = words.shape
        grams = count(words.reshape(-1, shape[2]), lengths.ravel(), base=self.base)
        number = np.empty_like(grams.key)  # -1: in no reference of any image
        by_key = np.argsort(grams.key)  # looked up in order, near ones are in the cache
        number[by_key] = index_in_sorted(self.keys, grams.key[by_key])
        rarity = np.where(number >= 0, self.rarity[number], self.unseen)
        order = np.searchsorted(self.base ** np.arange(1, MAX_ORDER), grams.key, side="right")
        square = np.bincount(
            grams.sequence * MAX_ORDER + order,
            (grams.times * rarity) ** 2,
            minlength=lengths.size * MAX_ORDER,
        )
        norms = np.sqrt(square).reshape(*shape[:2], MAX_ORDER)
        matched = self._matched(images, grams, number, width=shape[1])
        return Rewards(self._cider(images, matched, norms, lengths), self._bleu(images, matched, lengths))

    def _matched(self, images: Ints, grams: Grams, number: Ints, *, width: int) -> Matched:
        begin, counts = self.begin[images], self.begin[images + 1] - self.begin[images]
        row = np.repeat(np.arange(len(images)), counts)  # of the batch
        at = np.arange(len(row)) + np.repeat(begin - np.cumsum(counts) + counts, counts)
        pair = row * len(self.keys) + self.gram[at]
        new = _changes(pair)
        pairs, place = pair[new], np.cumsum(new) - 1
        first = self.first[images]
        most = int((self.first[images + 1] - first).max())
        theirs, ours = np.zeros((len(pairs), most)), np.zeros((len(pairs), width))
        theirs[place, self.caption[at] - first[row]] = self.times[at]
        known = np.flatnonzero(number >= 0)
        image, sequence = np.divmod(grams.sequence[known], width)
        found = index_in_sorted(pairs, image * len(self.keys) + number[known])
        hit = found >= 0
        ours[found[hit], sequence[hit]] = grams.times[known[hit]]
        image, gram = np.divmod(pairs, len(self.keys))
        return Matched(image * MAX_ORDER + self.order[gram], self.rarity[gram], theirs, ours)

    def _cider(self, images: Ints, matched: Matched, norms: Floats, lengths: Ints) -> Floats:
        """CIDEr-D (Vedantam et al. 2015), (B, K); `norms` (B, K, MAX_ORDER) of the captions."""
        references, there = self._of(images)
        theirs, ours = matched.theirs[:, None], matched.ours[:, :, None]
        both = np.minimum(ours, theirs)  # (U, K, R)
        both *= theirs * np.square(matched.rarity)[:, None, None]
        products = _sums(both, matched.segment, len(images))  # (B, MAX_ORDER, K, R)
        norms = norms.transpose(0, 2, 1)[..., None] * self.norms[references].transpose(0, 2, 1)[:, :, None]
        cosines = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
        # the published code measures length in bigrams
        bigrams = np.maximum(lengths - 1, 0)[..., None] - np.maximum(self.lengths[references] - 1, 0)[:, None]
        alike = cosines.mean(1) * np.exp(-(bigrams**2) / (2 * _SIGMA**2)) * there[:, None]
        return _SCALE * alike.sum(2) / there.sum(1)[:, None]

    def _bleu(self, images: Ints, matched: Matched, lengths: Ints) -> Floats:
        """BLEU-4 of each caption, (B, K), of two words and more with one added to matches and n-grams.

        Papineni et al. 2002 with the closest reference's length, the shorter of two; smoothing of Lin and Och
        2004, so that captions without a common 4-gram still differ. No common word: 0.
        """
        references, there = self._of(images)
        clipped = np.minimum(matched.ours, matched.theirs.max(1, keepdims=True))
        matches = _sums(clipped, matched.segment, len(images))  # (B, MAX_ORDER, K)
        more = np.minimum(np.arange(MAX_ORDER), 1)[:, None]
        totals = np.maximum(lengths[:, None] - np.arange(MAX_ORDER)[:, None], 1)
        precision = ((matches + more) / (totals + more)).prod(1) ** (1 / MAX_ORDER)
        theirs = self.lengths[references][:, None]  # (B, 1, R)
        gap = np.where(there[:, None], np.abs(theirs - lengths[..., None]), _NOTHING >> 32)
        longest = int(self.lengths.max()) + 1
        closest = (gap * longest + theirs).min(2) % longest  # the least (gap, length)
        return precision * np.exp(np.minimum(1 - closest / np.maximum(lengths, 1), 0))

    def _of(self, images: Ints) -> tuple[Ints, np.ndarray]:
        """Numbers of the images' references (B, R), and which of them there are."""
        counts = self.first[images + 1] - self.first[images]
        there = np.arange(counts.max()) < counts[:, None]
        return np.where(there, self.first[images][:, None] + np.arange(counts.max()), 0), there


def _changes(values: Ints) -> np.ndarray:
    """(M,) bool: where a value is not the one before it."""
    return np.append(np.ones(min(len(values), 1), bool), values[1:] != values[:-1])


def _sums(values: Floats, segment: Ints, images: int) -> Floats:
    """(U, ...) -> (B, MAX_ORDER, ...), summed by `segment`, which ascends."""
    begin = np.flatnonzero(_changes(segment))
    found = np.zeros((images * MAX_ORDER, *values.shape[1:]))
    found[segment[begin]] = np.add.reduceat(values, begin, axis=0)
    return found.reshape(images, MAX_ORDER, *values.shape[1:])
