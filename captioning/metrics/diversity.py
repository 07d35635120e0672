"""Diversity of an image's n captions: distinct n-grams, mBLEU, self-CIDEr; and the scores of the best of the n."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from captioning.metrics import Scores, get_metric, score
from captioning.metrics.base import AdditiveStatistics, Metric, MetricScore, mean_score, score_from_statistics
from captioning.metrics.bleu import NUM_STATISTICS, bleu, closest_length_rank, pack_statistics
from captioning.metrics.document_frequencies import DocumentFrequencies, inverse_document_frequencies
from captioning.metrics.ngrams import MAX_ORDER, Floats, Ints, NgramCounts, ReferenceCounts, count_ngrams
from captioning.utils.progress import progress

Captions = Sequence[Sequence[Sequence[str]]]
"""For each of I images its n captions, each a sequence of tokens; n is the same for all and at least 2."""

DESCRIPTIONS = {
    "Div": "Div-1, Div-2: different n-grams among an image's captions over their tokens, mean over images",
    "mBLEU-4": "corpus BLEU-4 of each image's k-th caption against its others, mean over k",
    "self-CIDEr": "Wang and Chan 2019: eigenvalues of the matrix of plain CIDEr, with CIDEr's document "
    "frequencies; -log_n(sqrt(largest) / sum of square roots), mean over images",
    "oracle": "each metric of the captions that are best by it in their image; corpus BLEU of these captions",
    "all": "of all captions of all images, not only of the one scored",
}
"""What the numbers are, for signatures."""


class Diversity(NamedTuple):
    """Diversity of the captions of I images. Except mBLEU, the scores of a corpus are means over images."""

    distinct: Floats  # (2, I) different n-grams of 1 and of 2 tokens, over tokens
    mbleu_statistics: Ints  # (I, n * NUM_STATISTICS)
    self_cider: Floats  # (I,) 0, if all captions are the same, to 1

    @property
    def mbleu(self) -> Floats:
        """(4,) mBLEU-1 to mBLEU-4: low if captions differ."""
        return mbleu(self.mbleu_statistics.sum(axis=0))


def diversity_scores(
    references: ReferenceCounts,
    captions: Captions,
    *,
    metrics: Sequence[str | Metric],
    frequencies: DocumentFrequencies,
) -> Scores:
    """Div-1, Div-2, self-CIDEr and mBLEU-4, and the `oracle_scores` of `metrics` as "oracle-METRIC".

    Raises:
        ValueError: as `diversity`.
    """
    result = diversity(captions, frequencies)
    scores = {
        "Div-1": mean_score(result.distinct[0]),
        "Div-2": mean_score(result.distinct[1]),
        "self-CIDEr": mean_score(result.self_cider),
        # mBLEU of one image is left out of the per-image scores
        "mBLEU-4": score_from_statistics(result.mbleu_statistics, _mbleu_4)._replace(per_image=None),
    }
    return Scores.of(scores) | oracle_scores(references, captions, metrics=metrics, frequencies=frequencies)


def _mbleu_4(statistics: Floats | Ints) -> Floats:
    return mbleu(statistics)[..., -1]


def diversity(captions: Captions, frequencies: DocumentFrequencies) -> Diversity:
    """Diversity of I images' captions; `frequencies` are for the idf weights of self-CIDEr.

    Raises:
        ValueError: no images, fewer than two captions, not as many for each image.
    """
    sizes = {len(texts) for texts in captions}
    if len(sizes) != 1 or min(sizes) < 2:
        raise ValueError(
            f"as many captions for each image, and two at least, are expected, got {sorted(sizes)}"
        )
    counts, n = count_ngrams(list(chain.from_iterable(captions))), sizes.pop()
    return Diversity(distinct(counts, n), mbleu_statistics(counts, n), self_cider(counts, n, frequencies))


def distinct(counts: NgramCounts, n: int) -> Floats:
    """Distinct-1 and distinct-2 (Li et al. 2016), also Div-1 and Div-2 (Shetty et al. 2017), (2, I).

    Different n-grams among an image's n captions, over the tokens (not the n-grams) in them; 0 if none.
    """
    tokens = counts.lengths.reshape(-1, n).sum(axis=1)
    ratios = []
    for order in counts.orders[:2]:
        num_ngrams = max(len(order.keys), 1)
        pairs = np.unique(order.sequence // n * num_ngrams + order.ngram)
        ratios.append(np.bincount(pairs // num_ngrams, minlength=len(tokens)) / np.maximum(tokens, 1))
    return np.array(ratios)


def mbleu(statistics: Floats | Ints) -> Floats:
    """mBLEU-1 to mBLEU-4 (Shetty et al. 2017; called self-BLEU by Zhu et al. 2018), (..., 4).

    BLEU of the images' first captions with each image's other n - 1 as references, then of the second ones, ...;
    the mean of these n corpus scores.

    Args:
        statistics: (..., n * NUM_STATISTICS), `mbleu_statistics` summed over some images.
    """
    return bleu(statistics.reshape(*statistics.shape[:-1], -1, NUM_STATISTICS)).mean(axis=-2)


def mbleu_statistics(counts: NgramCounts, n: int) -> Ints:
    """BLEU's statistics of each of an image's n captions with the others as references, (I, n * NUM_STATISTICS)."""
    lengths = counts.lengths.reshape(-1, n)
    matches = np.zeros((len(counts.lengths), MAX_ORDER), dtype=np.int64)
    for column, order in enumerate(counts.orders):
        maximum = _max_count_in_others(order.sequence // n, order.ngram, order.counts)
        np.add.at(matches[:, column], order.sequence, np.minimum(order.counts, maximum))

    rank, longest = closest_length_rank(lengths[:, :, None], lengths[:, None, :])  # (I, n, n)
    rank[:, range(n), range(n)] = np.iinfo(np.int64).max  # not its own reference
    closest = rank.min(axis=2) % longest
    return pack_statistics(matches.reshape(-1, n, MAX_ORDER), lengths, closest).reshape(len(lengths), -1)


def _max_count_in_others(image: Ints, ngram: Ints, counts: Ints) -> Ints:
    """For each image, n-gram and its count in one caption, (M,): its largest count in another caption."""
    order = np.lexsort((-counts, ngram, image))  # groups of an image's n-gram, the largest count first
    image, ngram, counts = image[order], ngram[order], counts[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (image[1:] != image[:-1]) | (ngram[1:] != ngram[:-1])
    group_start = np.flatnonzero(is_first)[np.cumsum(is_first) - 1]  # (M,)
    maximum = counts[group_start]
    # the caption with the largest count is compared with the second largest, if there is one
    second = np.append(np.where(is_first[1:], 0, counts[1:]), 0)
    maximum[is_first] = second[: len(is_first)][is_first]
    result = np.empty_like(maximum)
    result[order] = maximum
    return result


def self_cider(counts: NgramCounts, n: int, frequencies: DocumentFrequencies) -> Floats:
    """Self-CIDEr (Wang & Chan 2019, "Describing like Humans", section 4), (I,) from 0 to 1.

    The kernel matrix holds CIDEr / 10 (plain CIDEr, as CIDEr-D's matrix is not symmetric) of every two of an image's
    captions. With its eigenvalues v, which are squared singular values, diversity is
    -log_n(sqrt(max v) / sum of sqrt(v)). It is 0 for captions whose n-grams all have idf 0.
    """
    images, S = len(counts.lengths) // n, len(counts.lengths)
    kernel = np.zeros((images, n, n))
    for order, idf in zip(counts.orders, inverse_document_frequencies(counts, frequencies), strict=True):
        weight = order.counts * idf[order.ngram]
        norm = np.sqrt(np.bincount(order.sequence, weight**2, minlength=S))[order.sequence]
        weight = np.divide(weight, norm, out=np.zeros_like(weight), where=norm > 0)
        # number an image's n-grams from 0, so that its captions become the rows of a small dense matrix
        num_ngrams, image = max(len(order.keys), 1), order.sequence // n
        pairs, pair = np.unique(image * num_ngrams + order.ngram, return_inverse=True)
        first_pair = np.searchsorted(pairs // num_ngrams, np.arange(images + 1))
        column, first_entry = pair - first_pair[image], np.searchsorted(image, np.arange(images + 1))
        for number in range(images):
            entries = slice(first_entry[number], first_entry[number + 1])
            vectors = np.zeros((n, first_pair[number + 1] - first_pair[number]))
            vectors[order.sequence[entries] - number * n, column[entries]] = weight[entries]
            kernel[number] += vectors @ vectors.T / MAX_ORDER
    values = np.sqrt(np.clip(np.linalg.eigvalsh(kernel), 0, None))  # (I, n) ascending
    total = values.sum(axis=1)
    share = np.divide(values[:, -1], total, out=np.ones(images), where=total > 0)
    return np.abs(np.log(share)) / np.log(n)  # the absolute value avoids -0


def oracle_scores(
    references: ReferenceCounts,
    captions: Captions,
    *,
    metrics: Sequence[str | Metric],
    frequencies: DocumentFrequencies,
) -> Scores:
    """Scores of the best of each image's n captions, chosen separately for every metric, as "oracle-METRIC".

    Corpus BLEU is that of the captions with the best sentence BLEU.
    """
    runs: list[Scores] = []
    for position in progress(range(len(captions[0])), desc="oracle", unit="caption", delay=2):
        candidates = [texts[position] for texts in captions]
        runs.append(score(references, candidates, metrics=metrics, frequencies=frequencies))
    return Scores.of({f"oracle-{metric.name}": _best_of(runs, metric) for metric in map(get_metric, metrics)})


def _best_of(runs: Sequence[Scores], metric: Metric) -> MetricScore:
    """The score of the best caption of each image among n runs, each with one caption an image."""
    per_image = np.stack([run.per_image[metric.name] for run in runs])  # (n, I)
    best = per_image.argmax(axis=0) if metric.higher_is_better else per_image.argmin(axis=0)
    images = np.arange(len(best))
    if metric.name not in runs[0].statistics:
        return mean_score(per_image[best, images])
    values = np.stack([run.statistics[metric.name].values for run in runs])[best, images]
    function = runs[0].statistics[metric.name].score
    corpus = float(function(values.sum(axis=0)))
    return MetricScore(corpus, per_image[best, images], AdditiveStatistics(values, function))
