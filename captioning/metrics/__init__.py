"""Scores of captions: BLEU, ROUGE-L, CIDEr, CIDEr-D. Tokens in, numbers out; no torch, no files, no Java."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from captioning.metrics import bleu, cider, rouge
from captioning.metrics.bleu import BleuStatistics
from captioning.metrics.cider import DocumentFrequencies
from captioning.metrics.ngrams import ORDERS, ReferenceCounts, count

__all__ = ["NAMES", "BleuStatistics", "DocumentFrequencies", "ReferenceCounts", "Scores", "Summed", "score"]

NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "CIDEr-D")
"""As pycocoevalcap spells them, but for CIDEr-D: what pycocoevalcap and papers call CIDEr is CIDEr-D here."""


class Summed(NamedTuple):
    """What a corpus score is computed from where it is no mean of the images' scores: numbers that add up."""

    numbers: np.ndarray  # (I, C)
    score: Callable[[np.ndarray], np.ndarray]  # their sums over images, resampled or not, (..., C) -> (...)


class Scores(NamedTuple):
    """Scores of I images: BLEU and ROUGE-L in 0..1, CIDEr and CIDEr-D about 0..10."""

    corpus: dict[str, float]
    per_image: dict[str, np.ndarray]  # (I,) each; their mean is not corpus BLEU
    bleu: BleuStatistics | None = None  # of each image: what a resampled corpus BLEU is computed from
    summed: Mapping[str, Summed] = MappingProxyType({})  # likewise by the name of another metric


def score(
    references: Sequence[Sequence[Sequence[str]]] | ReferenceCounts,
    candidates: Sequence[Sequence[str]],
    *,
    names: Sequence[str] = NAMES,
    frequencies: DocumentFrequencies | None = None,
) -> Scores:
    """Score the candidate of each of I images against the image's references.

    Args:
        references: for each image its references, each a sequence of tokens; or those counted already.
        candidates: for each image one sequence of tokens.
        names: which of `NAMES` to compute.
        frequencies: for CIDEr; those of the references where None.

    Raises:
        ValueError: no images, an image without references, not one candidate an image, an unknown name.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f"unknown metric {unknown[0]!r}; there are {', '.join(NAMES)}")
    if not isinstance(references, ReferenceCounts):
        references = ReferenceCounts(references)
    if len(candidates) != references.images:
        raise ValueError(f"{len(candidates)} candidates for {references.images} images")
    if isinstance(candidates[0], str):
        raise ValueError(f"a candidate is a sequence of tokens, got the string {candidates[0]!r}")

    corpus: dict[str, float] = {}
    per_image: dict[str, np.ndarray] = {}
    statistics = None
    counts = count(candidates)
    if any(name.startswith("BLEU") for name in names):
        statistics = bleu.statistics(references, counts)
        whole, each = bleu.bleu(statistics.sums()), bleu.bleu(statistics)
        for order, name in enumerate(NAMES[:ORDERS]):
            corpus[name], per_image[name] = float(whole[order]), each[:, order]
    if "ROUGE-L" in names:
        pairs = zip(references.tokens, candidates, strict=True)
        per_image["ROUGE-L"] = np.array([rouge.rouge_l(*pair) for pair in pairs])
    if any(name.startswith("CIDEr") for name in names):
        frequencies = frequencies or DocumentFrequencies.of(references)
        per_image["CIDEr"], per_image["CIDEr-D"] = cider.cider(references, counts, frequencies)
    for name in per_image.keys() - corpus.keys():
        corpus[name] = float(per_image[name].mean())
    return Scores(
        corpus={name: corpus[name] for name in names},
        per_image={name: per_image[name] for name in names},
        bleu=statistics,
    )
