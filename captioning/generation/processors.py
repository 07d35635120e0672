"""Logits processors: the constraints on captions as functions on log-probabilities (B, K, V).

A new constraint is one function `(scores, ids) -> scores`, an option of `BaseSearchConfig` and a line in
`build_logits_processors`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from captioning.generation.automata import Automaton, phrase_of_ids
from captioning.generation.base import BaseSearchConfig
from captioning.generation.constraints import PhraseConstraints, enforce_constraints
from captioning.generation.scores import IMPOSSIBLE, next_logprobs
from captioning.text.vocabulary import SpecialTokens


class ConstraintIds(NamedTuple):
    """The words of a search's constraints as ids of a vocabulary.

    Where tokens are pieces of words, a text has several spellings: automata find each of them.
    """

    prefix: tuple[int, ...] = ()
    forced: tuple[tuple[int, ...], ...] = ()
    banned: tuple[int, ...] = ()
    endings: tuple[int, ...] = ()  # words that <end> may not follow
    forced_texts: tuple[Automaton, ...] = ()
    banned_texts: tuple[Automaton, ...] = ()  # also texts that <end> may not follow


Processor = Callable[[Tensor, Tensor], Tensor]
"""Log-probabilities of the next token (B, K, V), changed in place or not, and ids so far (B, K, t)."""


class LogitsProcessors(NamedTuple):
    """The constraints of one search, with their tensors on the device."""

    start: int
    end: int
    prefix: tuple[int, ...]
    min_length: int
    suppress_ids: Tensor  # never generated
    early_suppress_ids: Tensor  # not generated before `min_length` words: `suppress_ids` and <end>
    bans: tuple[Processor, ...]  # not even forced phrases break these
    active: tuple[Processor, ...]
    phrases: PhraseConstraints | None


def build_logits_processors(
    config: BaseSearchConfig,
    vocabulary_size: int,
    device: torch.device,
    *,
    special: SpecialTokens,
    constraints: ConstraintIds | None,
) -> LogitsProcessors:
    """The processors that implement the constraints of `config`.

    Raises:
        ValueError: an id is outside the vocabulary, `special.end` is suppressed, the constraints do not fit
            `max_length`, or `config` contains words but `constraints` is None.
    """
    if constraints is None:
        if config.needs_ids:
            raise ValueError(
                "the search's constraints contain words: pass constraints=constraint_ids(config, vocabulary)"
            )
        constraints = ConstraintIds()
    start, end, suppressed = special
    suppressed = (*suppressed, *constraints.banned)
    others = (
        *constraints.prefix,
        *constraints.endings,
        *(i for phrase in constraints.forced for i in phrase),
    )
    if outside := [i for i in (start, end, *suppressed, *others) if not 0 <= i < vocabulary_size]:
        raise ValueError(f"ids run from 0 to {vocabulary_size - 1}, got {outside[0]}")
    if end in suppressed:
        raise ValueError(f"the id of <end>, {end}, cannot be among the suppressed ids")
    if len(constraints.prefix) >= config.max_length:
        raise ValueError(
            f"a prefix of {len(constraints.prefix)} words leaves no word of max_length={config.max_length}"
        )
    phrases = [phrase_of_ids(ids, vocabulary_size) for ids in constraints.forced]
    phrases += constraints.forced_texts
    active: list[Processor] = []
    if config.no_repeat:
        active.append(partial(no_repeat_ngram, size=config.no_repeat))
    if constraints.endings:
        active.append(partial(no_bad_ending, endings=_unique(constraints.endings, device), end=end))
    return LogitsProcessors(
        start=start,
        end=end,
        prefix=constraints.prefix,
        min_length=config.min_length,
        suppress_ids=_unique(suppressed, device),
        early_suppress_ids=_unique((*suppressed, end), device),
        bans=tuple(
            _ban(texts, end=end, max_length=config.max_length, device=device)
            for texts in constraints.banned_texts
        ),
        active=tuple(active),
        phrases=PhraseConstraints.build(phrases, max_tokens=config.max_length - 1, end=end, device=device),
    )


def _ban(texts: Automaton, *, end: int, max_length: int, device: torch.device) -> Processor:
    table = torch.from_numpy(texts.table).to(device)
    return partial(forbid_texts, table=table, start=texts.start, end=end, max_length=max_length)


def process_logits(logits: Tensor, ids: Tensor, processors: LogitsProcessors) -> Tensor:
    """Log-probabilities (B, K, V) of the next token, minus infinity where a constraint forbids it.

    Allowed tokens keep their probability under the full distribution. See `next_logprobs`.

    Args:
        logits: (B, K, V), may be overwritten.
        ids: (B, K, t) so far, including the prefix.
    """
    may_end = ids.shape[-1] >= processors.min_length
    scores = next_logprobs(logits, processors.suppress_ids if may_end else processors.early_suppress_ids)
    for process in processors.bans:
        scores = process(scores, ids)
    unconstrained = scores.clone() if processors.phrases else scores
    for process in processors.active:
        scores = process(scores, ids)
    if processors.phrases:
        scores = enforce_constraints(scores, unconstrained, ids, processors.phrases)
    return scores


def no_repeat_ngram(scores: Tensor, ids: Tensor, *, size: int) -> Tensor:
    """Forbid the second occurrence of an n-gram of `size` words (Paulus et al. 2018, section 2.5)."""
    if ids.shape[-1] < size:
        return scores
    ngrams = ids.unfold(-1, size, 1)  # (B, K, t - size + 1, size)
    last = ids[..., ids.shape[-1] - size + 1 :][..., None, :]  # the last size - 1 words
    repeats = (ngrams[..., :-1] == last).all(-1)
    penalty = scores.new_zeros(repeats.shape).masked_fill_(repeats, IMPOSSIBLE)
    return scores.scatter_add_(-1, ngrams[..., -1], penalty)


def no_bad_ending(scores: Tensor, ids: Tensor, *, endings: Tensor, end: int) -> Tensor:
    """Forbid `end` after one of `endings` (U,)."""
    if ids.shape[-1]:
        scores[..., end].masked_fill_(torch.isin(ids[..., -1], endings), IMPOSSIBLE)
    return scores


def forbid_texts(
    scores: Tensor, ids: Tensor, *, table: Tensor, start: int, end: int, max_length: int
) -> Tensor:
    """Forbid the tokens that complete one of the texts of an automaton; table (S, V) and start as in `Automaton`."""
    states = ids.new_full(ids.shape[:-1], start)
    for token in ids.unbind(-1):
        states = table[states, token]
    following = table[states]  # (B, K, V)
    if ids.shape[-1] == max_length - 1:  # the caption is cut off behind the next token, as by <end>
        following = table[following, end]
    return scores.masked_fill_(following == len(table) - 1, IMPOSSIBLE)


def _unique(ids: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(sorted(set(ids)), dtype=torch.int64, device=device)
