"""What a caption may say: the settings that all searches share, as small functions on scores (B, K, V).

They know ids, no words and no decoder. Adding a rule is one function `(scores, words) -> scores`, a field of
`Rules` and a line in `limits`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import BeforeValidator, ConfigDict, Field
from torch import Tensor

from captioning.generation.constraints import Forced, enforce_constraints
from captioning.generation.scores import IMPOSSIBLE, LengthRule, check, check_lengths, ids_on, next_logprobs

Texts = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]
"""A list of words or phrases; one alone may be written without the brackets."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The settings of every search. Text is cut into words as captions are, see `words.rule_ids`.

    Attributes:
        max_length: most words of a caption, `<end>` counted.
        min_length: fewest words before `<end>`; equal to `max_length`, every caption has exactly that many.
        prefix: how every caption begins ("a photo of"). Its words count: in lengths and log-probabilities.
        forced: words or phrases, each of which every caption contains. A beam search keeps places for
            hypotheses that have said more of them (see `forced.dynamic_beam_allocation`); any other search says what it
            would say anyway, may not end before all have come, and says what is missing as late as the
            length allows.
        banned: words that never come.
        no_repeat: no n-gram of that size comes twice; 0: repeat at will. Prefix and forced phrases may.
        no_bad_ending: no caption ends behind an article, a preposition or the like (`words.BAD_ENDINGS`).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    kind: str
    max_length: Annotated[int, Field(ge=1)] = 20
    min_length: Annotated[int, Field(ge=0)] = 1
    prefix: str = ""
    forced: Texts = ()
    banned: Texts = ()
    no_repeat: Annotated[int, Field(ge=0)] = 0
    no_bad_ending: bool = False

    def __post_init__(self) -> None:
        check_lengths(self.min_length, self.max_length)

    @property
    def needs_ids(self) -> bool:
        """Whether there are words among the rules."""
        return bool(self.prefix or self.forced or self.banned or self.no_bad_ending)


@dataclass(frozen=True, kw_only=True)
class Ranked(Rules):
    """The settings of a search that compares captions of different lengths.

    Attributes:
        length_rule: what captions are ranked by: the sum of their log-probabilities, its mean over words, or
            that of `gnmt`, which alone reads `alpha`. See `scores.length_score`.
    """

    length_rule: LengthRule = "mean"
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.6


class RuleIds(NamedTuple):
    """The words of a search's rules as ids of a vocabulary."""

    prefix: tuple[int, ...] = ()
    forced: tuple[tuple[int, ...], ...] = ()
    banned: tuple[int, ...] = ()
    endings: tuple[int, ...] = ()  # words that <end> may not follow


Rule = Callable[[Tensor, Tensor], Tensor]
"""Scores of the next word (B, K, V), which may be written into, and the words so far (B, K, t) -> scores."""


class Limits(NamedTuple):
    """The rules of one search, ready for use on a device."""

    start: int
    end: int
    prefix: tuple[int, ...]
    min_length: int
    never: Tensor  # ids that never come
    early: Tensor  # and those that do not come before `min_length` words
    rules: tuple[Rule, ...]  # the active ones
    forced: Forced | None


def limits(
    config: Rules,
    size: int,
    device: torch.device,
    *,
    start: int,
    end: int,
    suppress_ids: Collection[int],
    ids: RuleIds | None,
) -> Limits:
    """Rules of `config` for a vocabulary of `size` words.

    Raises:
        ValueError: ids outside the vocabulary; words among the rules, but no ids of them.
    """
    if ids is None:
        if config.needs_ids:
            raise ValueError(
                "the search's rules name words: give their ids, words.rule_ids(config, vocabulary)"
            )
        ids = RuleIds()
    named = [word for words in (ids.prefix, ids.banned, ids.endings, *ids.forced) for word in words]
    check(size, start=start, end=end, suppress_ids=(*suppress_ids, *ids.banned), others=named)
    if len(ids.prefix) >= config.max_length:
        raise ValueError(f"a prefix of {len(ids.prefix)} words leaves no word of {config.max_length}")
    never = (*suppress_ids, *ids.banned)
    rules: list[Rule] = []
    if config.no_repeat:
        rules.append(partial(no_repeat, size=config.no_repeat))
    if ids.endings:
        rules.append(partial(no_bad_ending, endings=ids_on(ids.endings, device), end=end))
    return Limits(
        start=start,
        end=end,
        prefix=ids.prefix,
        min_length=config.min_length,
        never=ids_on(never, device),
        early=ids_on((*never, end), device),
        rules=tuple(rules),
        forced=Forced.of(ids.forced, last=config.max_length - 1, end=end, device=device),
    )


def next_scores(logits: Tensor, words: Tensor, limits: Limits) -> Tensor:
    """Log-probabilities (B, K, V) of the next word, minus infinity where a rule forbids it. See `next_logprobs`.

    Args:
        logits: (B, K, V).
        words: (B, K, t) so far, the prefix among them.
    """
    may_end = words.shape[-1] >= limits.min_length
    scores = next_logprobs(logits, limits.never if may_end else limits.early)
    unruled = scores.clone() if limits.forced else scores
    for rule in limits.rules:
        scores = rule(scores, words)
    return enforce_constraints(scores, unruled, words, limits.forced) if limits.forced else scores


def no_repeat(scores: Tensor, words: Tensor, *, size: int) -> Tensor:
    """No n-gram of `size` words comes a second time (Paulus et al. 2018, section 2.5, for trigrams)."""
    if words.shape[-1] < size:
        return scores
    said = words.unfold(-1, size, 1)  # (B, K, t - size + 1, size)
    begun = words[..., words.shape[-1] - size + 1 :][..., None, :]  # the last size - 1 words
    again = (said[..., :-1] == begun).all(-1)
    forbidden = scores.new_zeros(again.shape).masked_fill_(again, IMPOSSIBLE)
    return scores.scatter_add_(-1, said[..., -1], forbidden)


def no_bad_ending(scores: Tensor, words: Tensor, *, endings: Tensor, end: int) -> Tensor:
    """No `end` behind one of `endings`."""
    if words.shape[-1]:
        scores[..., end].masked_fill_(torch.isin(words[..., -1], endings), IMPOSSIBLE)
    return scores


def names(kind: type[Rules]) -> list[str]:
    """The settings of a kind of search."""
    return [field.name for field in fields(kind) if field.name != "kind"]


def settings(config: Rules, kind: type[Rules]) -> dict[str, Any]:
    """The settings of `config` that a search of another kind shares: lengths, length rule, rules."""
    shared = Ranked if issubclass(kind, Ranked) and isinstance(config, Ranked) else Rules
    return {name: getattr(config, name) for name in names(shared)}
