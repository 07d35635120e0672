"""A metric: ROUGE-1, the F1 score of the words that a caption shares with its best reference (Lin 2004)."""

from __future__ import annotations

from collections import Counter

from captioning.metrics import Metric, MetricInput, MetricScore, mean_score


class Rouge1(Metric):
    """Tokens in, numbers out. A metric is created without arguments.

    A corpus score that is no mean over images returns `score_from_statistics(...)`; `--against` then resamples it
    from sums over the images.
    """

    name = "ROUGE-1"
    description = "F1 of unigrams, best reference, mean over images"  # goes into the signature of every score

    def score(self, captions: MetricInput) -> MetricScore:
        return mean_score(
            [
                max(_f1(candidate, reference) for reference in references)
                for references, candidate in captions.pairs()
            ]
        )


def _f1(candidate: list[str], reference: list[str]) -> float:
    shared = (Counter(candidate) & Counter(reference)).total()
    return 2 * shared / max(1, len(candidate) + len(reference))
