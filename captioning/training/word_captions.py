"""Captions of pieces of words as ids of whole words, which is what rewards count."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from captioning.loaders.captions import EncodedCaptions
from captioning.text.vocabulary import SPECIALS, Vocabulary

_MAX_WORDS = 50_000  # n-grams of four ids fit an int64


class WordCaptions:
    """The words, as the scoring tokenizer splits them, of captions whose tokens are pieces of words.

    Attributes:
        captions: the training captions, in words.
        vocabulary_size: all ids are smaller.
    """

    def __init__(self, captions: EncodedCaptions, pieces: Vocabulary, *, max_length: int) -> None:
        """`max_length`: of generated captions. Words that no training caption has get ids of their own in each."""
        self._pieces = pieces
        count = len(captions.caption_offsets) - 1
        rows = [self._split(captions.caption(number)) for number in range(count)]
        counts = Counter(word for words, _ in rows for word in words if word not in SPECIALS)
        self._ids = {
            word: number for number, (word, _) in enumerate(counts.most_common(_MAX_WORDS), len(SPECIALS))
        }
        self._first_free = len(SPECIALS) + len(self._ids)
        self.vocabulary_size = self._first_free + max_length
        ids = [
            [pieces.start, *(self._ids.get(word, pieces.unk) for word in words), *end] for words, end in rows
        ]
        self.captions = captions._replace(
            ids=np.array([number for caption in ids for number in caption], np.int32),
            caption_offsets=np.cumsum([0, *map(len, ids)]),
        )

    def of(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Generated captions in words: ids (B, K, T) and lengths (B, K), with and without `<end>` as they came."""
        captions = [
            self._words(row[:length])
            for row, length in zip(ids.flatten(0, 1).tolist(), lengths.flatten().tolist(), strict=True)
        ]
        words = np.zeros((len(captions), max(1, *map(len, captions))), np.int64)
        for row, caption in zip(words, captions, strict=True):
            row[: len(caption)] = caption
        counts = torch.tensor([len(caption) for caption in captions])
        return torch.from_numpy(words).view(*ids.shape[:2], -1), counts.view(lengths.shape)

    def _split(self, ids: np.ndarray | list[int]) -> tuple[list[str], list[int]]:
        """The words, and `<end>` if it is there."""
        end = [self._pieces.end] if len(ids) and ids[-1] == self._pieces.end else []
        return self._pieces.split(self._pieces.text(ids)), end

    def _words(self, ids: list[int]) -> list[int]:
        words, end = self._split(ids)
        new: dict[str, int] = {}
        for word in words:
            if word not in self._ids:
                new.setdefault(word, min(self._first_free + len(new), self.vocabulary_size - 1))
        return [*(self._ids[word] if word in self._ids else new[word] for word in words), *end]

    def ids_of(self, words: frozenset[str]) -> list[int]:
        """The ids of those words that occur."""
        return [self._ids[word] for word in words if word in self._ids]
