"""Document frequencies of n-grams, their file, and the inverse document frequencies of CIDEr."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from captioning.errors import UserError
from captioning.metrics.ngrams import (
    MAX_ORDER,
    Floats,
    Ints,
    NgramCounts,
    NgramTable,
    ReferenceCounts,
    translate_counts,
)
from captioning.utils.files import ARRAY_ERRORS, atomic_write, fingerprint


@dataclass(frozen=True, eq=False)
class DocumentFrequencies:
    """The number of images with an n-gram in their references, for every n-gram."""

    num_images: int
    table: NgramTable
    counts: tuple[Ints, ...]  # an array for each order, as long as the table's keys

    @classmethod
    def of(cls, references: ReferenceCounts) -> DocumentFrequencies:
        counts = tuple(order.document_frequency for order in references.max_counts)
        return cls(num_images=references.num_images, table=references.table, counts=counts)

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the number of images and every n-gram's count."""
        arrays = [*self.table.keys, *self.counts]
        return fingerprint([self.num_images, list(self.table.words), *(array.tolist() for array in arrays)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.npz` of plain arrays atomically."""
        words = np.frombuffer(json.dumps(list(self.table.words)).encode("ascii"), dtype=np.uint8)
        arrays: dict[str, Any] = {"images": np.array(self.num_images), "words": words}
        for order, (keys, counts) in enumerate(zip(self.table.keys, self.counts, strict=True), 1):
            arrays |= {f"keys{order}": keys, f"counts{order}": counts}
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> DocumentFrequencies:
        """Read a file that `save` wrote.

        Raises:
            UserError: the file is missing or is no such table.
        """
        orders = range(1, MAX_ORDER + 1)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                words = {word: number for number, word in enumerate(json.loads(arrays["words"].tobytes()))}
                keys = tuple(arrays[f"keys{order}"] for order in orders)
                counts = tuple(arrays[f"counts{order}"] for order in orders)
                num_images = int(arrays["images"])
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except ARRAY_ERRORS as error:
            raise UserError(
                f"{path}: not a table of document frequencies ({error}); write one with its save"
            ) from None
        complete = len(words) == len(keys[0]) and all(map(lambda a, b: a.shape == b.shape, keys, counts))
        integers = all(array.dtype == np.int64 and array.ndim == 1 for array in (*keys, *counts))
        if not (complete and integers) or num_images < 1:
            raise UserError(f"{path}: a broken table of document frequencies; write it again")
        return cls(num_images=num_images, table=NgramTable(words, keys), counts=counts)


def inverse_document_frequencies(counts: NgramCounts, frequencies: DocumentFrequencies) -> list[Floats]:
    """idf of every n-gram in `counts`, an array for each order: log(images / images with it), log(images) if none."""
    numbers = translate_counts(counts, frequencies.table)
    log_images = np.log(frequencies.num_images)
    idf = []
    for number, document_frequency in zip(numbers, frequencies.counts, strict=True):
        logs = np.append(
            np.log(np.maximum(document_frequency, 1)), 0.0
        )  # the last for n-grams not in the table
        idf.append(log_images - logs[number])
    return idf
