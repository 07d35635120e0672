"""METEOR's score of statistics that its Java program gives, summed over images. Knows numbers, runs nothing."""

from __future__ import annotations

import numpy as np

from captioning.metrics.ngrams import Floats

STATISTICS = 23
"""Numbers that METEOR keeps of an image. They add up over images.

Words of the caption and of the reference; function words of each; for each of four modules (exact, stem, synonym,
paraphrase) matched content words of the caption and of the reference, matched function words of each; chunks;
matched words of the caption and of the reference.
"""
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MODULES = np.array([1.0, 0.6, 0.8, 0.6])


def summable(statistics: Floats) -> Floats:
    """What Java gives of images, (I, STATISTICS), as it adds them up: no chunk where all words match in one."""
    lengths, matched = statistics[:, 0:2], statistics[:, 21:23]
    summed = statistics.copy()
    summed[(matched == lengths).all(1) & (statistics[:, 20] == 1), 20] = 0
    return summed


def meteor_score(sums: Floats) -> Floats:
    """METEOR 1.5 (Denkowski and Lavie 2014, section 2) with its parameters for English.

    Args:
        sums: (..., STATISTICS), `summable` ones of an image or summed over some.

    Returns:
        (...), 0 to 1.
    """
    lengths, function = sums[..., 0:2], sums[..., 2:4]  # of the caption, of the reference
    modules = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)
    chunks, matched = sums[..., 20], sums[..., 21:23]
    weighed = _MODULES @ (_DELTA * modules[..., 0:2] + (1 - _DELTA) * modules[..., 2:4])
    precision, recall = np.moveaxis(
        _share(weighed, _DELTA * (lengths - function) + (1 - _DELTA) * function), -1, 0
    )
    mean = _share(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    return mean * (1 - _GAMMA * _share(2 * chunks, matched.sum(-1)) ** _BETA)


def _share(part: Floats, whole: Floats) -> Floats:
    """part / whole, 0 where there is nothing to have a share of."""
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole > 0)
