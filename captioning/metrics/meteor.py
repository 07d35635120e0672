"""METEOR 1.5 by its authors' Java program (Denkowski and Lavie 2014), English, with coco-caption's settings."""

from __future__ import annotations

import numpy as np

from captioning.metrics.base import AdditiveStatistics, Metric, MetricInput, MetricScore, Unavailable
from captioning.metrics.java import JavaProgram, java_line, java_package
from captioning.metrics.ngrams import Floats
from captioning.utils.progress import progress

NUM_STATISTICS = 23
"""Numbers that METEOR computes for an image. They add up over images.

Words of the caption and of the reference; function words of each; for each of four matchers (exact, stem, synonym,
paraphrase) matched content words of the caption and of the reference, matched function words of each; chunks;
matched words of the caption and of the reference.
"""
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MATCHER_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])


class Meteor(Metric):
    """The corpus score is METEOR of the statistics summed over images, not the mean of the images' scores."""

    name = "METEOR"
    description = "1.5, English, coco-caption's settings, aggregated over images"

    def __init__(self, *, heap: str = "2G", limit: float = 300) -> None:
        """`heap`: Java's, in its notation (its table of paraphrases needs 1G); `limit`: seconds for one answer."""
        self.heap, self.limit = heap, limit

    def check(self) -> None:
        java_package(self.name)

    def score(self, captions: MetricInput) -> MetricScore:
        """A candidate's token of white space alone counts as a word that no reference has."""
        folder = java_package(self.name) / "meteor"
        command = ["-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
        with JavaProgram(self.name, command, folder=folder, heap=self.heap, limit=self.limit) as program:
            lines = []
            pairs = list(captions.pairs())
            for references, candidate in progress(pairs, desc=self.name, unit="image", delay=2):
                fields = ["SCORE", *map(java_line, references), java_line(candidate)]
                line = program.ask(" ||| ".join(fields))
                if len(line.split()) != NUM_STATISTICS:
                    raise Unavailable(
                        f"METEOR: {NUM_STATISTICS} numbers expected of Java, got {line[:200]!r}"
                    )
                lines.append(line)
            scores = [float(program.ask(" ||| ".join(["EVAL", *lines])))]
            scores += [float(program.answer()) for _ in lines]
        statistics = summable(np.array([line.split() for line in lines], dtype=float))
        return MetricScore(scores[-1], np.array(scores[:-1]), AdditiveStatistics(statistics, meteor_score))


def summable(statistics: Floats) -> Floats:
    """Java's statistics of images, (I, NUM_STATISTICS), as it sums them: no chunk if all words match in one."""
    lengths, matched = statistics[:, 0:2], statistics[:, 21:23]
    summed = statistics.copy()
    summed[(matched == lengths).all(1) & (statistics[:, 20] == 1), 20] = 0
    return summed


def meteor_score(sums: Floats) -> Floats:
    """METEOR 1.5 (Denkowski and Lavie 2014, section 2) with its parameters for English.

    Args:
        sums: (..., NUM_STATISTICS), `summable` statistics of an image or summed over some.

    Returns:
        (...), 0 to 1.
    """
    lengths, function = sums[..., 0:2], sums[..., 2:4]  # of the caption, of the reference
    matchers = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)
    chunks, matched = sums[..., 20], sums[..., 21:23]
    weighted = _MATCHER_WEIGHTS @ (_DELTA * matchers[..., 0:2] + (1 - _DELTA) * matchers[..., 2:4])
    totals = _DELTA * (lengths - function) + (1 - _DELTA) * function
    precision, recall = np.moveaxis(_ratio(weighted, totals), -1, 0)
    mean = _ratio(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    return mean * (1 - _GAMMA * _ratio(2 * chunks, matched.sum(-1)) ** _BETA)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, 0 for a denominator of 0."""
    out = np.zeros(np.broadcast(numerator, denominator).shape)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)
