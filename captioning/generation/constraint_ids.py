"""The words of a search's constraints as ids of a vocabulary, with checks of both."""

from __future__ import annotations

from collections.abc import Sequence

from captioning.errors import UserError
from captioning.generation.automata import Automaton, phrase_of_ids, phrase_of_text, texts_of_tokens
from captioning.generation.base import BaseSearchConfig, BeamSearchConfig
from captioning.generation.processors import ConstraintIds
from captioning.metrics.caption_statistics import BAD_ENDINGS
from captioning.text.tokenizers import SEPARATORS
from captioning.text.vocabulary import SPECIALS, Vocabulary


def constraint_ids(config: BaseSearchConfig, vocabulary: Vocabulary) -> ConstraintIds:
    """The ids that a search with `config` needs. Text is tokenized as captions are.

    Banned words that the vocabulary does not contain are ignored.

    Raises:
        UserError: prefix or forced words are not in the vocabulary, are banned or do not fit `max_length`; a
            beam is wider than the vocabulary (the first step could not fill it).
    """
    num_tokens = len(vocabulary) - len(SPECIALS)
    if isinstance(config, BeamSearchConfig) and config.width > num_tokens:
        raise UserError(
            f"search.width: a beam of {config.width:,}, but the model has {num_tokens:,} {vocabulary.unit}; lower it "
            f"to {num_tokens:,} or less"
        )
    banned = tuple(dict.fromkeys(_banned(text, vocabulary) for text in config.banned))
    prefix = _ids(config.prefix, vocabulary, banned, "prefix") if config.prefix else ()
    if len(prefix) >= config.max_length:
        raise UserError(
            f"search.prefix: {config.prefix!r} has {len(prefix)} {vocabulary.unit}, but captions end at "
            f"max_length={config.max_length}; raise max_length"
        )
    # a phrase once, however often it is asked for
    forced = {_ids(text, vocabulary, banned, "forced"): text for text in config.forced}
    has_endings = config.no_bad_ending and bool(SEPARATORS[vocabulary.tokenizer])
    if vocabulary.unit == "words":
        _check_room(
            [phrase_of_ids(ids, len(vocabulary)) for ids in forced], prefix, config, unit=vocabulary.unit
        )
        return ConstraintIds(
            prefix=prefix,
            forced=tuple(forced),
            banned=tuple(vocabulary.ids[word] for word in banned if vocabulary.knows(word)),
            endings=tuple(sorted(map(vocabulary.ids.__getitem__, filter(vocabulary.knows, BAD_ENDINGS))))
            if has_endings
            else (),
        )
    forced_texts = tuple(phrase_of_text(text, vocabulary) for text in forced.values())
    _check_room(forced_texts, prefix, config, unit=vocabulary.unit)
    banned_texts = [texts_of_tokens(banned, vocabulary)] if banned else []
    if has_endings:
        banned_texts.append(texts_of_tokens(tuple(sorted(BAD_ENDINGS)), vocabulary, at_end=True))
    return ConstraintIds(prefix=prefix, forced_texts=forced_texts, banned_texts=tuple(banned_texts))


def _check_room(
    forced: Sequence[Automaton], prefix: tuple[int, ...], config: BaseSearchConfig, *, unit: str
) -> None:
    """Raise UserError if the phrases that are not in the prefix do not fit `max_length`."""
    needed = 0
    for phrase in forced:
        state = phrase.start
        for token in prefix:
            state = int(phrase.table[state, token])
        needed += int(phrase.remaining[phrase.start]) if phrase.remaining[state] else 0
    needed = len(prefix) + needed + 1 if needed else 0
    if needed > config.max_length:
        raise UserError(
            f"search.forced: the prefix, the forced words and the caption's end are {needed} {unit}, but "
            f"max_length={config.max_length}; raise it"
        )


def _banned(text: str, vocabulary: Vocabulary) -> str:
    """The word; without spaces between words, the text."""
    words = vocabulary.split(text)
    if not words or (len(words) > 1 and SEPARATORS[vocabulary.tokenizer]):
        raise UserError(f"search.banned: {text!r} is not one word; only words can be banned")
    return "".join(words)


def _ids(text: str, vocabulary: Vocabulary, banned: Sequence[str], option: str) -> tuple[int, ...]:
    words = vocabulary.split(text)
    if not words:
        raise UserError(f"search.{option}: {text!r} contains no word")
    if unknown := vocabulary.unknown_words(text):
        raise UserError(
            f"search.{option}: {unknown[0]!r} is not among the model's {len(vocabulary):,} {vocabulary.unit}; use "
            "another"
        )
    places = words if SEPARATORS[vocabulary.tokenizer] else "".join(words)
    if clash := [word for word in banned if word in places]:
        raise UserError(f"search.{option}: {clash[0]!r} is also in search.banned; remove it from one of them")
    return tuple(vocabulary.ids[token] for token in vocabulary.tokenize(text))
