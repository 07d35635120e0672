"""Byte-pair encoding (Sennrich et al. 2016), by the library `tokenizers`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from captioning.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_WORD = "▁"
"""Last character of every word, so that pieces tell where words end: `skate` `board▁`."""

Merges = tuple[tuple[str, str], ...]


def train_bpe(
    words: Mapping[str, int], *, size: int, min_count: int, specials: Sequence[str]
) -> tuple[tuple[str, ...], Merges]:
    """The pieces, `specials` first, and the merges that make them, in their order. The same for any order of words.

    Args:
        words: with their counts.
        size: maximum number of pieces without `specials`.
        min_count: occurrences that two neighbouring pieces need to be merged.

    Raises:
        UserError: there are more characters than `size`, or the library is missing.
    """
    tokenizers = _library()
    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # its threads and forked processes exclude each other
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=specials[-1]))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size + len(specials),
        min_frequency=min_count,
        special_tokens=list(specials),
        show_progress=False,
    )
    model.train_from_iterator((word for word, count in words.items() for _ in range(count)), trainer)
    ids = model.get_vocab()
    pieces = tuple(sorted(ids, key=lambda piece: ids[piece]))
    characters = {character for word in words for character in word}
    if len(characters) > size:
        raise UserError(
            f"vocabulary.size: {size:,} pieces are too few for captions with {len(characters):,} different "
            "characters; raise it"
        )
    return pieces, _merges(model)


def encoder(pieces: Sequence[str], merges: Merges, *, unknown: str) -> Tokenizer:
    """A tokenizer that splits words into `pieces`; call `split_words` with it.

    Raises:
        UserError: the library is missing.
    """
    tokenizers = _library()
    ids = {piece: number for number, piece in enumerate(pieces)}
    return tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=list(merges), unk_token=unknown))


def split_words(encoder: Tokenizer, words: Sequence[str]) -> list[str]:
    """The pieces of words, one word after the other; `unknown` for a character that is in no piece."""
    pieces: list[str] = encoder.encode(list(words), is_pretokenized=True, add_special_tokens=False).tokens
    return pieces


def _merges(model: Tokenizer) -> Merges:
    import json

    return tuple((left, right) for left, right in json.loads(model.to_str())["model"]["merges"])


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            'vocabulary.kind=bpe needs the package tokenizers; install it by pip install "captioning[bpe]"'
        ) from None
    return tokenizers
