"""The vocabulary: words to ids and back, built from the training split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, NamedTuple

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from captioning.errors import UserError
from captioning.text.tokenizer import tokenize
from captioning.utils.files import fingerprint, read_json, write_json
from captioning.utils.validation import check_shape


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """Words that occur `min_count` times in training; training captions are cut to `max_length` words."""

    __pydantic_config__ = {"extra": "forbid"}
    min_count: Annotated[int, Field(ge=1)] = 5
    max_length: Annotated[int, Field(ge=1, le=10_000)] = 50


class VocabularyFile(TypedDict):
    """The contents of `vocabulary.json`."""

    min_count: NotRequired[int]
    words: list[str]


SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")


class SpecialTokens(NamedTuple):
    """The ids that decoding treats specially."""

    start: int
    end: int
    suppress_ids: tuple[int, ...]  # never generated: <pad>, <start> and <unk>


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of words; the first four are `<pad>` 0, `<start>` 1, `<end>` 2 and `<unk>` 3."""

    words: tuple[str, ...]
    min_count: int = 1
    pad = 0
    start = 1
    end = 2
    unk = 3

    def __post_init__(self) -> None:
        if self.words[: len(SPECIALS)] != SPECIALS:
            raise UserError(f"a vocabulary must begin with {' '.join(SPECIALS)}, found {self.words[:4]}")
        if len(set(self.words)) != len(self.words):
            raise UserError("a vocabulary's words must be unique, but some occur twice")

    @classmethod
    def build(cls, captions: Iterable[str], *, min_count: int) -> Vocabulary:
        """Words that occur at least `min_count` times, the most frequent first.

        captions: of the training split only; words of other splits would leak into the model.
        """
        counts = Counter(token for caption in captions for token in tokenize(caption))
        frequent = sorted((-count, token) for token, count in counts.items() if count >= min_count)
        tokens = [token for _, token in frequent if token not in SPECIALS]
        if not tokens:
            raise UserError(f"no word occurs {min_count} times in the training captions; lower min_count")
        return cls(words=(*SPECIALS, *tokens), min_count=min_count)

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    @property
    def special_tokens(self) -> SpecialTokens:
        return SpecialTokens(self.start, self.end, suppress_ids=(self.pad, self.start, self.unk))

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.words)

    def encode(self, tokens: Sequence[str], *, max_length: int) -> list[int]:
        """`<start>`, at most `max_length` words, `<end>`; a truncated caption has no `<end>`."""
        # a caption that contains the text "<pad>" must not act as padding
        ids = [
            number if (number := self.ids.get(token, self.unk)) > self.unk else self.unk for token in tokens
        ]
        return [self.start, *ids[:max_length], *([self.end] if len(ids) <= max_length else [])]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Words up to `<end>`, without special ones except `<unk>`."""
        words: list[str] = []
        for number in ids:
            if number == self.end:
                break
            if number not in (self.pad, self.start):
                words.append(self.words[number])
        return words

    def save(self, path: str) -> None:
        write_json(path, {"min_count": self.min_count, "words": self.words})

    @classmethod
    def open(cls, path: str) -> Vocabulary:
        """Raises UserError if the file is missing or not a vocabulary."""
        value = check_shape(
            read_json(path), VocabularyFile, where=path, advice="restore the model's own file"
        )
        return cls(words=tuple(value["words"]), min_count=value.get("min_count", 1))
