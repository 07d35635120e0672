"""The tokenizers of captions by name, and the check that captions have spaces between their words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from captioning.errors import UserError
from captioning.text.tokenizer import tokenize

TokenizerName = Literal["ptb", "whitespace", "characters"]

UNKNOWN_WORD = "<unk>"
"""What some systems write for a word that they do not know; a token of every tokenizer."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How captions are split into words, for training and for scores.

    Attributes:
        tokenizer: "ptb": coco-caption's, for languages with spaces between words. "whitespace": splits at spaces
            alone, for captions that another program has segmented. "characters": every character is a word, for
            languages without spaces between words.
    """

    __pydantic_config__ = {"extra": "forbid"}
    tokenizer: TokenizerName = "ptb"


def _between_spaces(caption: str) -> list[str]:
    words = unicodedata.normalize("NFC", caption).lower().split()
    return [word for word in words if any(unicodedata.category(letter)[0] != "P" for letter in word)]


def _characters(caption: str) -> list[str]:
    characters: list[str] = []
    for part in re.split(f"({re.escape(UNKNOWN_WORD)})", unicodedata.normalize("NFC", caption).lower()):
        if part == UNKNOWN_WORD:
            characters.append(part)
            continue
        for character in part:
            category = unicodedata.category(character)[0]
            if category == "M" and characters:
                characters[-1] += character
            elif category not in "PZC":
                characters.append(character)
    return characters


TOKENIZERS: dict[TokenizerName, Callable[[str], list[str]]] = {
    "ptb": tokenize,
    "whitespace": _between_spaces,
    "characters": _characters,
}
"""Caption -> lower-case tokens; an empty list if it has only punctuation."""

TOKENIZER_DESCRIPTIONS: dict[TokenizerName, str] = {
    "ptb": "PTB as Stanford's 3.4.1, lower-cased, coco-caption's punctuation dropped",
    "whitespace": "words between spaces, lower-cased, without those of punctuation alone",
    "characters": "characters with their combining marks, lower-cased, without spaces and punctuation",
}
"""For the signature of an evaluation."""

SEPARATORS: dict[TokenizerName, str] = {"ptb": " ", "whitespace": " ", "characters": ""}
"""What stands between the tokens of a caption that is put together."""

UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""A letter of a script without spaces between words: Thai, Lao, Burmese, Khmer, Japanese or Chinese."""

_MAX_MEAN_LENGTH = 30
_MAX_MEAN_LENGTH_UNSPACED = 12  # Burmese and Khmer words have about 6 letters
_MAX_MEAN_LENGTH_CHINESE = 4  # and Japanese: words have 2 characters on average
_CHINESE = re.compile("[\u3040-\u30ff\u3400-\u9fff]")


def refuse_sentences_as_words(words: Mapping[str, int], tokenizer: TokenizerName) -> None:
    """Raise UserError if the words of captions (with their counts) are too long on average to be words."""
    if tokenizer == "characters":
        return
    lengths, counts = Counter[int](), Counter[int]()
    for word, count in words.items():
        limit = _MAX_MEAN_LENGTH
        if not word.isascii() and UNSPACED.search(word):
            limit = _MAX_MEAN_LENGTH_CHINESE if _CHINESE.search(word) else _MAX_MEAN_LENGTH_UNSPACED
        lengths[limit] += len(word) * count
        counts[limit] += count
    if not counts:
        return
    limit = max(lengths, key=lambda key: lengths[key])  # of the script with most of the letters
    if lengths[limit] <= limit * counts[limit]:
        return
    raise UserError(
        f"the captions' words have {lengths[limit] / counts[limit]:.0f} letters on average, as in a language without "
        "spaces between words; set text.tokenizer=characters (captioning evaluate, compare and prepare: --tokenizer "
        "characters), in training also vocabulary.kind=bpe for pieces of several characters, or put spaces between "
        "the words"
    )
