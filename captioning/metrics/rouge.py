"""ROUGE-L: precision and recall of the longest common subsequence (Lin 2004)."""

from __future__ import annotations

from collections.abc import Sequence

from captioning.metrics.base import Metric, MetricInput, MetricScore, mean_score

_BETA = 1.2  # weight of recall against precision in coco-caption


class RougeL(Metric):
    name = "ROUGE-L"
    description = "beta 1.2, best precision and best recall taken separately, mean over images"

    def score(self, captions: MetricInput) -> MetricScore:
        return mean_score([rouge_l(references, candidate) for references, candidate in captions.pairs()])


def longest_common_subsequence(candidate: Sequence[str], reference: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): bit i of `row` is 0 if the
    dynamic-programming row rises at reference token i.
    """
    positions: dict[str, int] = {}
    bit = 1
    for token in reference:
        positions[token] = positions.get(token, 0) | bit
        bit <<= 1
    all_bits = bit - 1
    row = all_bits
    for token in candidate:
        if match := row & positions.get(token, 0):
            row = (row + match) | (row - match)
    return (all_bits & ~row).bit_count()


def rouge_l(references: Sequence[Sequence[str]], candidate: Sequence[str]) -> float:
    """ROUGE-L of one image, 0..1, from the best precision and the best recall over its references.

    As in coco-caption, an empty caption counts as one empty token, which equals an empty reference. One thing
    differs: coco-caption's tokenizer joins "22 3/4" and telephone numbers by a no-break space, at which its BLEU
    and CIDEr split words and its ROUGE-L does not; here all three split there.
    """
    candidate = candidate or [""]
    precision = recall = 0.0
    for reference in references:
        length = longest_common_subsequence(candidate, reference or [""])
        precision = max(precision, length / len(candidate))
        recall = max(recall, length / max(len(reference), 1))
    if not precision:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
