"""CIDEr and CIDEr-D (Vedantam et al. 2015), with document frequencies that can be saved. Knows no text.

CIDEr-D is what papers print as "CIDEr": it clips counts and punishes a difference in length.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from captioning.errors import UserError
from captioning.metrics.ngrams import ORDERS, Counts, Floats, Ints, ReferenceCounts, Table, find, translate
from captioning.utils.files import atomic_write, fingerprint

_SIGMA = 6.0  # of the length penalty, in n-grams of two tokens: the published code measures length so
_SCALE = 10.0


@dataclass(frozen=True, eq=False)
class DocumentFrequencies:
    """In how many images' references each n-gram occurs."""

    images: int
    table: Table
    counts: tuple[Ints, ...]  # an array an order, as long as the table's keys

    @classmethod
    def of(cls, references: ReferenceCounts) -> DocumentFrequencies:
        counts = tuple(highest.images for highest in references.highest)
        return cls(images=references.images, table=references.table, counts=counts)

    def fingerprint(self) -> str:
        """Sixteen hex digits of the number of images and every n-gram's count."""
        parts = [*self.table.keys, *self.counts]
        return fingerprint([self.images, list(self.table.words), *(part.tolist() for part in parts)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.npz` of plain arrays, whole or not at all."""
        words = np.frombuffer(json.dumps(list(self.table.words)).encode("ascii"), dtype=np.uint8)
        arrays: dict[str, Any] = {"images": np.array(self.images), "words": words}
        for size, (keys, counts) in enumerate(zip(self.table.keys, self.counts, strict=True), 1):
            arrays |= {f"keys{size}": keys, f"counts{size}": counts}
        with atomic_write(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> DocumentFrequencies:
        """Raises UserError where the file is missing or not such a table."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                words = {word: number for number, word in enumerate(json.loads(arrays["words"].tobytes()))}
                keys = tuple(arrays[f"keys{size}"] for size in range(1, ORDERS + 1))
                counts = tuple(arrays[f"counts{size}"] for size in range(1, ORDERS + 1))
                images = int(arrays["images"])
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError) as error:
            raise UserError(
                f"{path}: not a table of document frequencies ({error}); write one with its save"
            ) from None
        whole = len(words) == len(keys[0]) and all(map(lambda a, b: a.shape == b.shape, keys, counts))
        if not whole or images < 1:
            raise UserError(f"{path}: a broken table of document frequencies; write it again")
        return cls(images=images, table=Table(words, keys), counts=counts)


def cider(
    references: ReferenceCounts, candidates: Counts, frequencies: DocumentFrequencies
) -> tuple[Floats, Floats]:
    """CIDEr and CIDEr-D of each of I images, about 0..10; candidate i belongs to image i.

    With n-gram vectors of tf-idf weights, equations 1 to 3 of the paper; of one image it is 0, because every
    n-gram of its references occurs in all images there are.
    """
    reference_rarity = rarity(references.counts, frequencies)
    candidate_rarity = rarity(candidates, frequencies)
    numbers = translate(candidates.words, [order.keys for order in candidates.orders], references.table)
    S, image = len(references.image), references.image

    plain, clipped = np.zeros(S), np.zeros(S)  # of each reference, summed over orders
    for ours, theirs, rare, rarer, number in zip(
        candidates.orders, references.counts.orders, candidate_rarity, reference_rarity, numbers, strict=True
    ):
        weight, reference_weight = ours.times * rare[ours.gram], theirs.times * rarer[theirs.gram]
        norm = np.sqrt(np.bincount(ours.sequence, weight**2, minlength=references.images))
        reference_norm = np.sqrt(np.bincount(theirs.sequence, reference_weight**2, minlength=S))

        # pair each n-gram of a reference with the same one in its image's candidate
        grams, gram = max(len(theirs.keys), 1), number[ours.gram]
        known = np.flatnonzero(gram >= 0)
        pair = ours.sequence[known] * grams + gram[known]
        by_pair = np.argsort(pair)
        at = find(pair[by_pair], image[theirs.sequence] * grams + theirs.gram)
        both = np.flatnonzero(at >= 0)
        a, b, sequence = weight[known][by_pair][at[both]], reference_weight[both], theirs.sequence[both]

        scale = norm[image] * reference_norm
        scale = np.divide(1, scale, out=np.zeros(S), where=scale > 0)
        plain += scale * np.bincount(sequence, a * b, minlength=S)
        clipped += scale * np.bincount(sequence, np.minimum(a, b) * b, minlength=S)

    bigrams = np.maximum(references.counts.lengths - 1, 0) - np.maximum(candidates.lengths - 1, 0)[image]
    clipped *= np.exp(-(bigrams**2) / (2 * _SIGMA**2))
    mean = _SCALE / (ORDERS * references.per_image)
    return (
        np.bincount(image, plain, minlength=references.images) * mean,
        np.bincount(image, clipped, minlength=references.images) * mean,
    )


def rarity(counts: Counts, frequencies: DocumentFrequencies) -> list[Floats]:
    """Inverse document frequency of every n-gram in `counts`, an array an order; log(images) if unseen."""
    logs = [np.log(np.maximum(documents, 1)) for documents in frequencies.counts]
    numbers = translate(counts.words, [order.keys for order in counts.orders], frequencies.table)
    full = np.log(frequencies.images)
    return [
        full - (np.where(number >= 0, log[np.maximum(number, 0)], 0.0) if len(log) else np.zeros(len(number)))
        for number, log in zip(numbers, logs, strict=True)
    ]
