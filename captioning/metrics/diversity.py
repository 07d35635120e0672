"""How much n captions of one image differ, and the best among them. Tokens in, numbers out; no text, no files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from captioning.metrics import Scores, Summed, score
from captioning.metrics.bleu import BleuStatistics, bleu, of_numbers
from captioning.metrics.cider import DocumentFrequencies, rarity
from captioning.metrics.ngrams import ORDERS, Counts, Floats, Ints, ReferenceCounts, count

Captions = Sequence[Sequence[Sequence[str]]]
"""For each of I images its n captions, each a sequence of tokens; n is the same for all and at least 2."""


class Diversity(NamedTuple):
    """Diversity of I images' captions; all but mBLEU of each image, (I,), the mean over images being its score."""

    distinct: Floats  # (2, I) different n-grams of 1 and of 2 tokens, over tokens
    alike: Ints  # (I, n x 10) what mBLEU is computed from
    self_cider: Floats  # 0 where all captions are the same .. 1

    @property
    def mbleu(self) -> Floats:
        """(4,) mBLEU-1..4: low where captions differ."""
        return mbleu(self.alike.sum(axis=0))


def diversity_scores(
    references: ReferenceCounts, captions: Captions, *, names: Sequence[str], frequencies: DocumentFrequencies
) -> Scores:
    """Div-1, Div-2, self-CIDEr, mBLEU-4 (of the corpus alone), and the `oracle` of each of `names`.

    Raises:
        ValueError: as `diversity`.
    """
    found = diversity(captions, frequencies)
    per_image = dict(zip(("Div-1", "Div-2", "self-CIDEr"), (*found.distinct, found.self_cider), strict=True))
    corpus = {name: float(values.mean()) for name, values in per_image.items()}
    corpus["mBLEU-4"] = float(found.mbleu[-1])
    best = oracle(references, captions, names=names, frequencies=frequencies)
    corpus |= {f"oracle-{name}": value for name, value in best.corpus.items()}
    per_image |= {f"oracle-{name}": values for name, values in best.per_image.items()}
    summed = {f"oracle-{name}": each for name, each in best.summed.items()}
    return Scores(corpus, per_image, summed={"mBLEU-4": Summed(found.alike, _mbleu_4), **summed})


def _mbleu_4(sums: Floats | Ints) -> Floats:
    return mbleu(sums)[..., -1]


def diversity(captions: Captions, frequencies: DocumentFrequencies) -> Diversity:
    """Diversity of I images' captions, with the document frequencies that weigh n-grams in self-CIDEr.

    Raises:
        ValueError: no images, fewer than two captions, not as many for each image.
    """
    sizes = {len(own) for own in captions}
    if len(sizes) != 1 or min(sizes) < 2:
        raise ValueError(
            f"as many captions for each image, and two at least, are expected, got {sorted(sizes)}"
        )
    counts, n = count(list(chain.from_iterable(captions))), sizes.pop()
    return Diversity(distinct(counts, n), alike(counts, n), self_cider(counts, n, frequencies))


def distinct(counts: Counts, n: int) -> Floats:
    """Distinct-1 and distinct-2 (Li et al. 2016), also Div-1 and Div-2 (Shetty et al. 2017), (2, I).

    Different n-grams among an image's n captions, over the tokens (not the n-grams) in them; 0 if none.
    """
    tokens = counts.lengths.reshape(-1, n).sum(axis=1)
    shares = []
    for order in counts.orders[:2]:
        grams = max(len(order.keys), 1)
        pairs = np.unique(order.sequence // n * grams + order.gram)
        shares.append(np.bincount(pairs // grams, minlength=len(tokens)) / np.maximum(tokens, 1))
    return np.array(shares)


def mbleu(sums: Floats | Ints) -> Floats:
    """mBLEU-1..4 (Zhu et al. 2018, called self-BLEU there; Shetty et al. 2017).

    BLEU of the images' first captions with each image's other n - 1 as references, then of the second ones, ...;
    the mean of these n corpus scores.

    Args:
        sums: (..., n x 10), what is `alike` in some images' captions, summed over them.

    Returns:
        (..., 4).
    """
    each = sums.reshape(*sums.shape[:-1], -1, 2 * ORDERS + 2)
    return bleu(of_numbers(each)).mean(axis=-2)


def alike(counts: Counts, n: int) -> Ints:
    """What BLEU is computed from, of each of an image's n captions with the others as references: (I, n x 10)."""
    lengths = counts.lengths.reshape(-1, n)
    matches = np.zeros((len(counts.lengths), ORDERS), dtype=np.int64)
    for size, order in enumerate(counts.orders):
        allowed = np.minimum(order.times, _most_in_others(order.sequence // n, order.gram, order.times))
        np.add.at(matches[:, size], order.sequence, allowed)

    # the closest length among the others, and of two equally close the shorter: the least (gap, length)
    longest = lengths.max(initial=0) + 1
    gap = np.abs(lengths[:, :, None] - lengths[:, None, :])  # (I, n, n)
    rank = gap * longest + lengths[:, None, :]
    rank[:, range(n), range(n)] = np.iinfo(np.int64).max
    closest = rank.min(axis=2) % longest
    totals = np.maximum(lengths[..., None] - np.arange(ORDERS), 0)
    each = BleuStatistics(matches.reshape(-1, n, ORDERS), totals, lengths, closest)  # (I, n, ...)
    return each.numbers().reshape(len(lengths), -1)


def _most_in_others(image: Ints, gram: Ints, times: Ints) -> Ints:
    """For each (image, n-gram, times in one caption), (M,): its largest count in another caption of the image."""
    order = np.lexsort(
        (-times, gram, image)
    )  # an n-gram's counts in an image side by side, the largest first
    image, gram, times = image[order], gram[order], times[order]
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = (image[1:] != image[:-1]) | (gram[1:] != gram[:-1])
    first = np.flatnonzero(fresh)[np.cumsum(fresh) - 1]  # (M,) where the group of each begins
    most = times[first]
    # what the first of a group is compared with is the second, if there is one
    second = np.append(np.where(fresh[1:], 0, times[1:]), 0)
    most[fresh] = second[: len(fresh)][fresh]
    result = np.empty_like(most)
    result[order] = most
    return result


def self_cider(counts: Counts, n: int, frequencies: DocumentFrequencies) -> Floats:
    """Self-CIDEr (Wang & Chan 2019, "Describing like Humans", section 4), (I,) from 0 to 1.

    The kernel matrix holds CIDEr / 10 (the plain one, not CIDEr-D, whose matrix is not symmetric) of each two of
    an image's captions. With its eigenvalues v, which are squared singular values, diversity is
    -log_n(sqrt(max v) / sum of sqrt(v)). Captions of nothing that has weight give 0.
    """
    images, S = len(counts.lengths) // n, len(counts.lengths)
    kernel = np.zeros((images, n, n))
    for order, rare in zip(counts.orders, rarity(counts, frequencies), strict=True):
        weight = order.times * rare[order.gram]
        norm = np.sqrt(np.bincount(order.sequence, weight**2, minlength=S))[order.sequence]
        weight = np.divide(weight, norm, out=np.zeros_like(weight), where=norm > 0)
        # number an image's n-grams from 0, so that its captions are the rows of a small dense matrix
        grams, image = max(len(order.keys), 1), order.sequence // n
        pairs, place = np.unique(image * grams + order.gram, return_inverse=True)
        ends = np.searchsorted(pairs // grams, np.arange(images + 1))
        column, bounds = place - ends[image], np.searchsorted(image, np.arange(images + 1))
        for number in range(images):
            own = slice(bounds[number], bounds[number + 1])
            vectors = np.zeros((n, ends[number + 1] - ends[number]))
            vectors[order.sequence[own] - number * n, column[own]] = weight[own]
            kernel[number] += vectors @ vectors.T / ORDERS
    values = np.sqrt(np.clip(np.linalg.eigvalsh(kernel), 0, None))  # (I, n) ascending
    total = values.sum(axis=1)
    share = np.divide(values[:, -1], total, out=np.ones(images), where=total > 0)
    return np.abs(np.log(share)) / np.log(n)  # of a share of 1 it would be -0


def oracle(
    references: ReferenceCounts, captions: Captions, *, names: Sequence[str], frequencies: DocumentFrequencies
) -> Scores:
    """The scores of the best of each image's n captions, chosen for every metric on its own.

    Corpus BLEU is that of the captions with the best BLEU of their own.
    """
    positions = range(len(captions[0]))
    found: list[Scores] = []
    for at in tqdm(positions, desc="oracle", unit="caption", leave=False, disable=None, delay=2):
        candidates = [own[at] for own in captions]
        found.append(score(references, candidates, names=names, frequencies=frequencies))
    corpus, per_image, summed = {}, {}, {}
    for name in names:
        each = np.stack([scores.per_image[name] for scores in found])  # (n, I)
        per_image[name] = each.max(axis=0)
        corpus[name] = float(per_image[name].mean())
        if name.startswith("BLEU-"):
            best = each.argmax(axis=0)
            statistics = [scores.bleu for scores in found if scores.bleu is not None]
            rows = range(len(best))
            chosen = BleuStatistics(*(np.stack(part)[best, rows] for part in zip(*statistics, strict=True)))
            summed[name] = Summed(chosen.numbers(), partial(_bleu_of, order=int(name[-1])))
            corpus[name] = float(summed[name].score(summed[name].numbers.sum(axis=0)))
    return Scores(corpus, per_image, summed=summed)


def _bleu_of(sums: Floats | Ints, *, order: int) -> Floats:
    return bleu(of_numbers(sums))[..., order - 1]
