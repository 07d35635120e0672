"""The words of a search's constraints as ids of a vocabulary, with checks of both."""

from __future__ import annotations

from captioning.errors import UserError
from captioning.generation.base import BaseSearchConfig, BeamSearchConfig
from captioning.generation.processors import ConstraintIds
from captioning.metrics.caption_statistics import BAD_ENDINGS
from captioning.text.tokenizer import tokenize
from captioning.text.vocabulary import SPECIALS, Vocabulary


def constraint_ids(config: BaseSearchConfig, vocabulary: Vocabulary) -> ConstraintIds:
    """The ids that a search with `config` needs. Text is tokenized as captions are.

    Banned words that the vocabulary does not contain are ignored.

    Raises:
        UserError: prefix or forced words are not in the vocabulary, are banned or do not fit `max_length`; a
            beam is wider than the vocabulary (the first step could not fill it).
    """
    num_words = len(vocabulary) - len(SPECIALS)
    if isinstance(config, BeamSearchConfig) and config.width > num_words:
        raise UserError(
            f"search.width: a beam of {config.width:,}, but the model has {num_words:,} words; lower it to "
            f"{num_words:,} or less"
        )
    banned: list[str] = []
    for text in config.banned:
        tokens = tokenize(text)
        if len(tokens) != 1:
            raise UserError(f"search.banned: {text!r} is not one word; only words can be banned")
        banned.append(tokens[0])
    prefix = _ids(config.prefix, vocabulary, banned, "prefix")
    forced = tuple(dict.fromkeys(_ids(text, vocabulary, banned, "forced") for text in config.forced))
    if len(prefix) >= config.max_length:
        raise UserError(
            f"search.prefix: {config.prefix!r} has {len(prefix)} words, but captions end at "
            f"max_length={config.max_length}; raise max_length"
        )
    missing = [phrase for phrase in forced if not _contains(prefix, phrase)]
    needed = len(prefix) + sum(map(len, missing)) + 1
    if missing and needed > config.max_length:
        raise UserError(
            f"search.forced: the prefix, the forced words and the caption's end are {needed} words, but "
            f"max_length={config.max_length}; raise it"
        )
    return ConstraintIds(
        prefix=prefix,
        forced=forced,
        banned=tuple(vocabulary.ids[word] for word in dict.fromkeys(banned) if _known(word, vocabulary)),
        endings=tuple(sorted(vocabulary.ids[word] for word in BAD_ENDINGS if _known(word, vocabulary)))
        if config.no_bad_ending
        else (),
    )


def _ids(text: str, vocabulary: Vocabulary, banned: list[str], option: str) -> tuple[int, ...]:
    tokens = tokenize(text)
    if not tokens and (text or option == "forced"):
        raise UserError(f"search.{option}: {text!r} contains no word")
    for token in tokens:
        if not _known(token, vocabulary):
            raise UserError(
                f"search.{option}: {token!r} is not among the model's {len(vocabulary):,} words; use another"
            )
        if token in banned:
            raise UserError(
                f"search.{option}: {token!r} is also in search.banned; remove it from one of them"
            )
    return tuple(vocabulary.ids[token] for token in tokens)


def _known(token: str, vocabulary: Vocabulary) -> bool:
    return vocabulary.ids.get(token, vocabulary.unk) > vocabulary.unk


def _contains(ids: tuple[int, ...], phrase: tuple[int, ...]) -> bool:
    return any(ids[at : at + len(phrase)] == phrase for at in range(len(ids) - len(phrase) + 1))
