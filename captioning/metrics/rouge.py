"""ROUGE-L: the longest common subsequence (Lin 2004). Knows tokens of one image at a time."""

from __future__ import annotations

from collections.abc import Sequence

_BETA = 1.2  # weight of recall against precision in coco-caption


def common(candidate: Sequence[str], reference: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): bit i of `row` is 0 where the
    dynamic-programming row rises at reference token i.
    """
    places: dict[str, int] = {}
    bit = 1
    for token in reference:
        places[token] = places.get(token, 0) | bit
        bit <<= 1
    everywhere = bit - 1
    row = everywhere
    for token in candidate:
        if match := row & places.get(token, 0):
            row = (row + match) | (row - match)
    return (everywhere & ~row).bit_count()


def rouge_l(references: Sequence[Sequence[str]], candidate: Sequence[str]) -> float:
    """ROUGE-L of one image, 0..1: the best precision and the best recall over references, each on its own.

    An empty caption counts as one empty token, as it does in coco-caption: it equals an empty reference. One
    thing differs from coco-caption: its tokenizer joins "22 3/4" and telephone numbers by a no-break space, at
    which its BLEU and CIDEr part words and its ROUGE-L does not; here they are parted for all three.
    """
    candidate = candidate or [""]
    precision = recall = 0.0
    for reference in references:
        length = common(candidate, reference or [""])
        precision = max(precision, length / len(candidate))
        recall = max(recall, length / max(len(reference), 1))
    if not precision:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
