"""Metrics by other people's code: METEOR and SPICE in Java, NLTK's BLEU. Knows which can be had, computes none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from captioning.metrics import Summed, java
from captioning.metrics.meteor import meteor_score
from captioning.metrics.ngrams import ORDERS

Tokens = Sequence[str]

_JAVA: dict[str, tuple[Callable[..., java.JavaScores], str]] = {
    "METEOR": (java.meteor, "1.5, English, coco-caption's settings, aggregated over images"),
    "SPICE": (java.spice, "1.0, mean of the images' F over all tuples"),
}
_NLTK = tuple(f"NLTK-BLEU-{order}" for order in range(1, ORDERS + 1))

FURTHER = (*_JAVA, *_NLTK)
"""What can be had beside `captioning.metrics.NAMES`."""


class Further(NamedTuple):
    """Scores of I images that could be had, and a sentence each on what could not or is to be known of them."""

    corpus: dict[str, float]
    per_image: dict[str, np.ndarray]  # (I,) each; NLTK's BLEU has none
    variants: dict[str, str]
    notes: tuple[str, ...]
    summed: dict[str, Summed]  # as `Scores` has it


def further(
    references: Sequence[Sequence[Tokens]], candidates: Sequence[Tokens], *, names: Sequence[str]
) -> Further:
    """Score the candidate of each of I images by those of `FURTHER` that are named.

    Raises:
        ValueError: an unknown name.
    """
    if unknown := [name for name in names if name not in FURTHER]:
        raise ValueError(f"unknown metric {unknown[0]!r}; there are {', '.join(FURTHER)}")
    found = Further({}, {}, {}, (), {})
    for name, (work, variant) in _JAVA.items():
        if name not in names:
            continue
        try:
            scores = work(references, candidates)
        except java.Unavailable as reason:
            found = found._replace(notes=(*found.notes, str(reason)))
            continue
        found.corpus[name], found.per_image[name] = scores.corpus, scores.per_image
        found.variants[name] = variant
        if scores.statistics is not None:
            found.summed[name] = Summed(scores.statistics, meteor_score)
    if chosen := [name for name in _NLTK if name in names]:
        four, variant, notes = _nltk(references, candidates)
        found.corpus.update({name: four[_NLTK.index(name)] for name in chosen})
        found.variants["NLTK-BLEU"] = variant
        found = found._replace(notes=found.notes + notes)
    return found


def _nltk(
    references: Sequence[Sequence[Tokens]], candidates: Sequence[Tokens]
) -> tuple[list[float], str, tuple[str, ...]]:
    """NLTK's corpus BLEU of 1 to 4 tokens, what it is, and what it warned of."""
    import nltk  # only where asked for: it takes a second
    from nltk.translate.bleu_score import corpus_bleu

    weights = [(1 / size,) * size for size in range(1, ORDERS + 1)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        four = corpus_bleu(references, candidates, weights=weights)
    variant = f"corpus_bleu of nltk {nltk.__version__}, no smoothing, same tokens as the others"
    zero = "NLTK-BLEU: some n-grams never match, and NLTK gives nearly 0 for them; BLEU-1 to BLEU-4 are what counts"
    return [float(value) for value in four], variant, (zero,) if caught else ()
