"""BLEU by NLTK, to cross-check ours: corpus scores only."""

from __future__ import annotations

import warnings

from captioning.metrics.base import Metric, MetricInput, MetricScore
from captioning.metrics.ngrams import MAX_ORDER


class NltkBleu(Metric):
    """NLTK's corpus BLEU of n-grams up to `order`."""

    description = "corpus_bleu of nltk, no smoothing, same tokens as the other metrics"

    def __init__(self, order: int) -> None:
        self.name = f"NLTK-BLEU-{order}"
        self.order = order

    def score(self, captions: MetricInput) -> MetricScore:
        scores, version, zero_matches = captions.shared(_corpus_bleu)
        note = (
            "NLTK-BLEU: some n-grams never match, for which NLTK gives nearly 0; use BLEU-1 to BLEU-4"
            if zero_matches
            else ""
        )
        return MetricScore(scores[self.order - 1], note=note, details=f"nltk {version}")


NLTK_BLEU = tuple(NltkBleu(order) for order in range(1, MAX_ORDER + 1))


def _corpus_bleu(captions: MetricInput) -> tuple[list[float], str, bool]:
    """NLTK's corpus BLEU of 1 to 4 tokens, its version, and whether it warned of n-grams without a match."""
    import nltk  # takes a second, so only if asked for
    from nltk.translate.bleu_score import corpus_bleu

    weights = [(1 / order,) * order for order in range(1, MAX_ORDER + 1)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = corpus_bleu(captions.references.tokens, captions.candidates, weights=weights)
    return [float(score) for score in scores], nltk.__version__, bool(caught)
