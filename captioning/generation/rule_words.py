"""The words of a search's rules as ids of a vocabulary, and what cannot be had. Knows text, no tensors."""

from __future__ import annotations

from captioning.errors import UserError
from captioning.generation.beam import BeamConfig
from captioning.generation.diverse_beam import DiverseBeamConfig
from captioning.generation.processors import RuleIds, Rules
from captioning.metrics.evaluation import BAD_ENDINGS
from captioning.text.tokenizer import tokenize
from captioning.text.vocabulary import SPECIALS, Vocabulary


def rule_ids(config: Rules, vocabulary: Vocabulary) -> RuleIds:
    """The ids that a search by `config` needs. Text is tokenized as captions are.

    Banned words that the vocabulary does not have cannot come anyway and are left out.

    Raises:
        UserError: words to be said are not in the vocabulary, are banned or do not fit the longest caption; a beam
            has more places than the vocabulary words (its first word could not fill them).
    """
    words = len(vocabulary) - len(SPECIALS)
    if isinstance(config, (BeamConfig, DiverseBeamConfig)) and config.width > words:
        raise UserError(
            f"search.width: a beam of {config.width:,}, but the model knows {words:,} words; lower it to {words:,} "
            "or less"
        )
    banned = {}
    for text in config.banned:
        tokens = tokenize(text)
        if len(tokens) != 1:
            raise UserError(f"search.banned: {text!r} is not one word; only words can be banned")
        banned[tokens[0]] = text
    prefix = _ids(config.prefix, vocabulary, banned, "prefix")
    forced = tuple(dict.fromkeys(_ids(text, vocabulary, banned, "forced") for text in config.forced))
    if len(prefix) >= config.max_length:
        raise UserError(
            f"search.prefix: {config.prefix!r} has {len(prefix)} words, and captions end at "
            f"max_length={config.max_length}; raise max_length"
        )
    missing = [phrase for phrase in forced if not _within(phrase, prefix)]
    if missing and len(prefix) + sum(map(len, missing)) + 1 > config.max_length:
        raise UserError(
            f"search.forced: the prefix, the forced words and the caption's end are "
            f"{len(prefix) + sum(map(len, missing)) + 1} words, but max_length={config.max_length}; raise it"
        )
    return RuleIds(
        prefix=prefix,
        forced=forced,
        banned=tuple(vocabulary.ids[word] for word in banned if _known(word, vocabulary)),
        endings=tuple(sorted(vocabulary.ids[word] for word in BAD_ENDINGS if _known(word, vocabulary)))
        if config.no_bad_ending
        else (),
    )


def _ids(text: str, vocabulary: Vocabulary, banned: dict[str, str], where: str) -> tuple[int, ...]:
    tokens = tokenize(text)
    if not tokens and (text or where == "forced"):
        raise UserError(f"search.{where}: {text!r} holds no word")
    for token in tokens:
        if not _known(token, vocabulary):
            raise UserError(
                f"search.{where}: {token!r} is not among the model's {len(vocabulary):,} words; use another"
            )
        if token in banned:
            raise UserError(f"search.{where}: {token!r} is also in search.banned; it cannot be both")
    return tuple(vocabulary.ids[token] for token in tokens)


def _known(token: str, vocabulary: Vocabulary) -> bool:
    return vocabulary.ids.get(token, vocabulary.unk) > vocabulary.unk


def _within(phrase: tuple[int, ...], words: tuple[int, ...]) -> bool:
    return any(words[at : at + len(phrase)] == phrase for at in range(len(words) - len(phrase) + 1))
