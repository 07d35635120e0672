"""Long lists as arrays, which processes forked from this one share. Knows numbers and strings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


class PackedStrings:
    """An immutable sequence of ids or paths, each made anew when it is asked for.

    Every look at an element of a list writes to it (the count of its references), and what is written to is
    copied: worker processes that read a long list end with a copy of it each.
    """

    def __init__(self, values: Iterable[int | str]):
        texts = [f"={value}" if isinstance(value, str) else f"{value}" for value in values]
        coded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._ends = np.cumsum([0, *map(len, coded)])
        self._coded = np.frombuffer(b"".join(coded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> int | str:
        if not 0 <= number < len(self):
            raise IndexError(f"there are {len(self)} elements, number {number} was asked for")
        coded = self._coded[self._ends[number] : self._ends[number + 1]].tobytes()
        text = coded.decode("utf-8", "surrogatepass")
        return text[1:] if text[:1] == "=" else int(text)

    def __iter__(self) -> Iterator[int | str]:
        return (self[number] for number in range(len(self)))
