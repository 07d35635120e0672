"""A sequence of ids or paths in two NumPy arrays, whose memory forked processes share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


class PackedStrings:
    """An immutable sequence of integers and strings, which are created on access.

    Reading an element of a list changes its reference count, so the operating system copies the memory page: worker
    processes that read a long list end up with a copy of it each.
    """

    def __init__(self, values: Iterable[int | str]):
        texts = [f"={value}" if isinstance(value, str) else f"{value}" for value in values]
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> int | str:
        if not 0 <= number < len(self):
            raise IndexError(f"index {number} is out of range: there are {len(self)} elements")
        data = self._bytes[self._ends[number] : self._ends[number + 1]].tobytes()
        text = data.decode("utf-8", "surrogatepass")
        return text[1:] if text[:1] == "=" else int(text)

    def __iter__(self) -> Iterator[int | str]:
        return (self[number] for number in range(len(self)))
