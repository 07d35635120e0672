"""CIDEr and CIDEr-D (Vedantam et al. 2015).

CIDEr-D clips counts and lowers the score of captions whose length differs from the reference's. It is the metric that
papers print as "CIDEr", and pycocoevalcap's class `Cider` computes it.
"""

from __future__ import annotations

import numpy as np

from captioning.metrics.base import Metric, MetricInput, MetricScore, mean_score
from captioning.metrics.document_frequencies import inverse_document_frequencies
from captioning.metrics.ngrams import MAX_ORDER, Floats, index_in_sorted, translate_counts

_SIGMA = 6.0  # of the length penalty, in bigrams: the published code measures length so
_FACTOR = 10.0  # the published code's, so that scores lie in 0..10


class PlainCider(Metric):
    name = "CIDEr"
    description = (
        "plain CIDEr, not what papers print as CIDEr (that is CIDEr-D): no stemming, x10, mean over images"
    )

    def score(self, captions: MetricInput) -> MetricScore:
        return mean_score(captions.shared(cider)[0], note=_note(captions))


class CiderD(Metric):
    name = "CIDEr-D"
    description = (
        'the metric printed as "CIDEr" in papers and by pycocoevalcap: clipped counts, length penalty sigma 6 in '
        "bigrams, x10, mean over images"
    )

    def score(self, captions: MetricInput) -> MetricScore:
        return mean_score(captions.shared(cider)[1], note=_note(captions))


def _note(captions: MetricInput) -> str:
    if captions.frequencies.num_images > 1:
        return ""
    return "CIDEr of a single image is 0: every n-gram occurs in all images, so its idf is 0"


def cider(captions: MetricInput) -> tuple[Floats, Floats]:
    """CIDEr and CIDEr-D of each of I images, 0..10: cosines of tf-idf vectors, equations 1 to 3 of the paper."""
    references, candidates = captions.references, captions.counts
    candidate_idf = inverse_document_frequencies(candidates, captions.frequencies)
    reference_idf = inverse_document_frequencies(references.counts, captions.frequencies)
    numbers = translate_counts(candidates, references.table)
    S, image = len(references.image), references.image

    plain, clipped = np.zeros(S), np.zeros(S)  # of each reference, summed over orders
    for ours, theirs, idf, their_idf, number in zip(
        candidates.orders, references.counts.orders, candidate_idf, reference_idf, numbers, strict=True
    ):
        weight, reference_weight = ours.counts * idf[ours.ngram], theirs.counts * their_idf[theirs.ngram]
        norm = np.sqrt(np.bincount(ours.sequence, weight**2, minlength=references.num_images))
        reference_norm = np.sqrt(np.bincount(theirs.sequence, reference_weight**2, minlength=S))

        # pair each n-gram of a reference with the same one in its image's candidate
        num_ngrams, ngram = max(len(theirs.keys), 1), number[ours.ngram]
        known = np.flatnonzero(ngram >= 0)
        pair = ours.sequence[known] * num_ngrams + ngram[known]
        by_pair = np.argsort(pair)
        index = index_in_sorted(pair[by_pair], image[theirs.sequence] * num_ngrams + theirs.ngram)
        both = np.flatnonzero(index >= 0)
        a, b, sequence = weight[known][by_pair][index[both]], reference_weight[both], theirs.sequence[both]

        norms = norm[image] * reference_norm
        scale = np.divide(1, norms, out=np.zeros(S), where=norms > 0)
        plain += scale * np.bincount(sequence, a * b, minlength=S)
        clipped += scale * np.bincount(sequence, np.minimum(a, b) * b, minlength=S)

    bigrams = np.maximum(references.counts.lengths - 1, 0) - np.maximum(candidates.lengths - 1, 0)[image]
    clipped *= np.exp(-(bigrams**2) / (2 * _SIGMA**2))
    mean = _FACTOR / (MAX_ORDER * references.per_image)
    return (
        np.bincount(image, plain, minlength=references.num_images) * mean,
        np.bincount(image, clipped, minlength=references.num_images) * mean,
    )
