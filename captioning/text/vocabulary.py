"""The vocabulary: words or byte pairs to ids and back, built from the training split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from captioning.errors import UserError
from captioning.text.bpe import END_OF_WORD, Merges, encoder, split_words, train_bpe
from captioning.text.tokenizers import SEPARATORS, TOKENIZERS, TokenizerName, refuse_sentences_as_words
from captioning.utils.files import fingerprint, read_json, write_json
from captioning.utils.validation import check_shape


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """The tokens that captions are made of.

    Attributes:
        kind: "words", or "bpe": pieces of words by byte-pair encoding, which spell every word of known characters.
        size: maximum number of words, the most frequent ones, or of pieces; null: all words, 4,000 pieces.
        min_count: occurrences in the training captions that a word needs, or two pieces to become one.
        max_length: training captions are cut to this number of words or pieces.
    """

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["words", "bpe"] = "words"
    size: Annotated[int, Field(ge=1)] | None = None
    min_count: Annotated[int, Field(ge=1)] = 5
    max_length: Annotated[int, Field(ge=1, le=10_000)] = 50

    def build(self, captions: Iterable[str], *, tokenizer: TokenizerName) -> Vocabulary:
        """The vocabulary of these captions, which are of the training split only.

        Raises:
            UserError: captions have no spaces between words, no word is frequent enough, there are more characters than
                `size`, or the library of `bpe` is missing.
        """
        if self.kind == "bpe":
            return Vocabulary.build_bpe(
                captions, size=self.size or BPE_SIZE, min_count=self.min_count, tokenizer=tokenizer
            )
        return Vocabulary.build(captions, min_count=self.min_count, size=self.size, tokenizer=tokenizer)


class VocabularyFile(TypedDict):
    """The contents of `vocabulary.json`."""

    min_count: NotRequired[int]
    words: list[str]
    tokenizer: NotRequired[TokenizerName]
    merges: NotRequired[list[Annotated[list[str], Field(min_length=2, max_length=2)]]]


BPE_SIZE = 4000
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")


class SpecialTokens(NamedTuple):
    """The ids that decoding treats specially."""

    start: int
    end: int
    suppress_ids: tuple[int, ...]  # never generated: <pad>, <start> and <unk>


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of tokens; the first four are `<pad>` 0, `<start>` 1, `<end>` 2 and `<unk>` 3.

    Attributes:
        words: the tokens: words, or pieces of words.
        min_count: see `VocabularyConfig`.
        tokenizer: splits a caption into the words that metrics compare.
        merges: of byte-pair encoding, if the tokens are pieces.
    """

    words: tuple[str, ...]
    min_count: int = 1
    tokenizer: TokenizerName = "ptb"
    merges: Merges | None = None
    pad = 0
    start = 1
    end = 2
    unk = 3

    def __post_init__(self) -> None:
        if self.words[: len(SPECIALS)] != SPECIALS:
            raise UserError(f"a vocabulary must begin with {' '.join(SPECIALS)}, found {self.words[:4]}")
        if len(set(self.words)) != len(self.words):
            raise UserError("a vocabulary's words must be unique, but some occur twice")
        if lost := [pair for pair in self.merges or () if not {*pair, "".join(pair)} <= self.ids.keys()]:
            raise UserError(f"a vocabulary's merges must be of its pieces, found {lost[0]}")

    @classmethod
    def build(
        cls,
        captions: Iterable[str],
        *,
        min_count: int,
        size: int | None = None,
        tokenizer: TokenizerName = "ptb",
    ) -> Vocabulary:
        """Words that occur at least `min_count` times, the most frequent first, and at most `size` of them.

        captions: of the training split only; words of other splits would leak into the model.
        """
        counts = count_words(captions, tokenizer)
        frequent = sorted((-count, token) for token, count in counts.items() if count >= min_count)
        tokens = [token for _, token in frequent if token not in SPECIALS]
        if not tokens:
            raise UserError(f"no word occurs {min_count} times in the training captions; lower min_count")
        return cls(words=(*SPECIALS, *tokens[:size]), min_count=min_count, tokenizer=tokenizer)

    @classmethod
    def build_bpe(
        cls, captions: Iterable[str], *, size: int, min_count: int, tokenizer: TokenizerName = "ptb"
    ) -> Vocabulary:
        """Pieces by byte-pair encoding; arguments as of `build`."""
        if SEPARATORS[tokenizer]:
            counts = count_words(captions, tokenizer)
            units = Counter[str]()
            for word, count in counts.items():
                units.update(dict.fromkeys(_units([word], tokenizer), count))
        else:  # pieces may hold any neighbouring characters of a caption
            split = TOKENIZERS[tokenizer]
            units = Counter(unit for caption in captions for unit in _units(split(caption), tokenizer))
        pieces, merges = train_bpe(units, size=size, min_count=min_count, specials=SPECIALS)
        return cls(words=pieces, min_count=min_count, tokenizer=tokenizer, merges=merges)

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    @property
    def special_tokens(self) -> SpecialTokens:
        return SpecialTokens(self.start, self.end, suppress_ids=(self.pad, self.start, self.unk))

    @property
    def unit(self) -> str:
        """What the tokens are called: words, characters or pieces."""
        if self.merges is not None:
            return "pieces"
        return "characters" if self.tokenizer == "characters" else "words"

    @cached_property
    def fingerprint(self) -> str:
        more = (self.tokenizer, self.merges)
        return fingerprint(self.words if more == ("ptb", None) else [self.words, *more])

    @cached_property
    def _encoder(self) -> Any:
        return encoder(self.words, self.merges or (), unknown=SPECIALS[self.unk])

    def split(self, text: str) -> list[str]:
        """The words of a text, as metrics compare them."""
        return TOKENIZERS[self.tokenizer](text)

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text: its words, or their pieces. They may be unknown."""
        return self._pieces(self.split(text))

    def _pieces(self, words: Sequence[str]) -> list[str]:
        if self.merges is None:
            return list(words)
        return split_words(self._encoder, _units(words, self.tokenizer))

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the tokens cannot spell."""
        return [word for word in self.split(text) if not all(map(self.knows, self._pieces([word])))]

    def knows(self, token: str) -> bool:
        """Whether a token can be generated."""
        return self.ids.get(token, self.unk) > self.unk

    def encode(self, tokens: Sequence[str], *, max_length: int) -> list[int]:
        """`<start>`, at most `max_length` tokens, `<end>`; a truncated caption has no `<end>`."""
        # a caption that contains the text "<pad>" must not act as padding
        ids = [
            number if (number := self.ids.get(token, self.unk)) > self.unk else self.unk for token in tokens
        ]
        return [self.start, *ids[:max_length], *([self.end] if len(ids) <= max_length else [])]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Tokens up to `<end>`, without special ones except `<unk>`."""
        words: list[str] = []
        for number in ids:
            if number == self.end:
                break
            if number not in (self.pad, self.start):
                words.append(self.words[number])
        return words

    def text(self, ids: Iterable[int]) -> str:
        """The caption: tokens up to `<end>`, pieces joined to words."""
        tokens = self.decode(ids)
        if self.merges is None:
            return SEPARATORS[self.tokenizer].join(tokens)
        return " ".join(word for word in "".join(tokens).split(END_OF_WORD) if word)

    def save(self, path: str) -> None:
        value: dict[str, Any] = {"min_count": self.min_count, "words": self.words}
        if self.tokenizer != "ptb":
            value["tokenizer"] = self.tokenizer
        if self.merges is not None:
            value["merges"] = self.merges
        write_json(path, value)

    @classmethod
    def open(cls, path: str) -> Vocabulary:
        """Raises UserError if the file is missing or not a vocabulary."""
        value = check_shape(
            read_json(path), VocabularyFile, where=path, advice="restore the model's own file"
        )
        merges = tuple((left, right) for left, right in value.get("merges", ()))
        return cls(
            words=tuple(value["words"]),
            min_count=value.get("min_count", 1),
            tokenizer=value.get("tokenizer", "ptb"),
            merges=merges if "merges" in value else None,
        )


def count_words(captions: Iterable[str], tokenizer: TokenizerName) -> Counter[str]:
    """How often each word occurs. Raises UserError if whole sentences are words."""
    split = TOKENIZERS[tokenizer]
    counts = Counter(token for caption in captions for token in split(caption))
    refuse_sentences_as_words(counts, tokenizer)
    return counts


def _units(words: Sequence[str], tokenizer: TokenizerName) -> list[str]:
    """What byte-pair encoding splits: words with an end, or the whole caption where nothing stands between them."""
    words = [word.replace(END_OF_WORD, "") for word in words]
    units = [f"{word}{END_OF_WORD}" for word in words if word] if SEPARATORS[tokenizer] else ["".join(words)]
    return [unit for unit in units if unit]
