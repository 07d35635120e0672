"""Forced words and phrases: constrained decoding on ids and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from captioning.generation.automata import Automaton
from captioning.generation.scores import IMPOSSIBLE, Candidates
from captioning.text.vocabulary import SPECIALS


class PhraseConstraints(NamedTuple):
    """P phrases that every caption must contain, and the number of tokens available for them.

    The automata of all phrases have S states together.
    """

    table: Tensor  # (S, V) int64: the state after each token
    remaining: Tensor  # (S,) int64: tokens that the phrase still needs; 0: it has occurred
    next_ids: Tensor  # (S,) int64: a token that continues the phrase
    starts: Tensor  # (P,) int64: the states of an empty caption
    useful_ids: Tensor  # (U,) int64: tokens that belong to a phrase, or end the word before it
    detour: int  # tokens that a phrase may need more than in an empty caption: to end the last word
    max_tokens: int  # of a caption, <end> not counted
    end: int

    @classmethod
    def build(
        cls, phrases: Sequence[Automaton], *, max_tokens: int, end: int, device: torch.device
    ) -> PhraseConstraints | None:
        """None without phrases. Raises ValueError where they do not fit `max_tokens`."""
        if not phrases:
            return None
        lengths = [int(phrase.remaining[phrase.start]) for phrase in phrases]
        if sum(lengths) > max_tokens or not all(lengths):
            raise ValueError(f"phrases of {lengths} tokens do not fit a caption of {max_tokens}")
        offsets = np.cumsum([0, *(len(phrase.table) for phrase in phrases[:-1])])
        useful = np.any(
            [(each.remaining[each.table[:-1]] < each.remaining.max()).any(0) for each in phrases], 0
        )
        useful[: len(SPECIALS)] = False

        def joined(arrays: Sequence[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate(arrays)).to(device)

        return cls(
            table=joined([phrase.table + offset for phrase, offset in zip(phrases, offsets, strict=True)]),
            remaining=joined([phrase.remaining for phrase in phrases]),
            next_ids=joined([phrase.next_ids for phrase in phrases]),
            starts=joined([offsets + [phrase.start for phrase in phrases]]),
            useful_ids=joined([np.flatnonzero(useful)]),
            detour=max(
                int(phrase.remaining.max()) - length for phrase, length in zip(phrases, lengths, strict=True)
            ),
            max_tokens=max_tokens,
            end=end,
        )

    def after(self, states: Tensor, ids: Tensor) -> Tensor:
        """The states (..., P) after states (..., P) and one more token (...)."""
        return self.table[states, ids[..., None]]


class PhraseProgress(NamedTuple):
    """How much of every phrase each sequence contains."""

    states: Tensor  # (..., P) int64
    met: Tensor  # (..., P) bool: the sequence contains the phrase
    matched: Tensor  # (..., P) int64: tokens that the phrase needs less than in an empty caption
    open: Tensor  # (...) number of tokens of the unmet phrases
    next: Tensor  # (..., P) an id that continues the phrase

    def missing(self) -> Tensor:
        """(...) number of tokens still needed if the furthest unmet phrase is continued."""
        furthest = self.matched.masked_fill(self.met, torch.iinfo(torch.int64).min).amax(-1)
        return self.open - furthest.masked_fill(self.met.all(-1), 0)


def phrase_progress(ids: Tensor, constraints: PhraseConstraints) -> PhraseProgress:
    """The progress of sequences `ids` (B, K, t), computed from the ids alone."""
    states = constraints.starts.expand(*ids.shape[:-1], -1)
    for token in ids.unbind(-1):
        states = constraints.after(states, token)
    return _progress(states, constraints)


def _progress(states: Tensor, constraints: PhraseConstraints) -> PhraseProgress:
    remaining, lengths = constraints.remaining[states], constraints.remaining[constraints.starts]
    met = remaining == 0
    return PhraseProgress(
        states=states,
        met=met,
        matched=lengths - remaining,
        open=(lengths * ~met).sum(-1),
        next=constraints.next_ids[states],
    )


def enforce_constraints(
    scores: Tensor, unconstrained: Tensor, ids: Tensor, constraints: PhraseConstraints
) -> Tensor:
    """Forbid `<end>` before all phrases occur, and tokens that leave too few tokens for the missing phrases.

    Missing tokens are counted as if phrases could not overlap, so one token is always possible: the next one
    of the furthest phrase. It is allowed even where other constraints forbid all such tokens.

    Args:
        scores: (B, K, V), may be overwritten.
        unconstrained: (B, K, V) before the other constraints.
    """
    progress = phrase_progress(ids, constraints)
    scores[..., constraints.end].masked_fill_(progress.open > 0, IMPOSSIBLE)
    room = constraints.max_tokens - ids.shape[-1] - 1  # tokens after the next one
    # (B, K): the next token is not free
    urgent = (progress.open > 0) & (progress.open + constraints.detour > room)
    if not urgent.any():
        return scores
    useful = constraints.useful_ids
    states = constraints.after(progress.states[:, :, None], useful.expand(*ids.shape[:2], -1))  # (B, K, U, P)
    fits = _progress(states, constraints).missing() <= room
    allowed, fallback = (x[..., useful].masked_fill(~fits, IMPOSSIBLE) for x in (scores, unconstrained))
    allowed = torch.where((allowed == IMPOSSIBLE).all(-1, keepdim=True), fallback, allowed)
    only = torch.full_like(scores, IMPOSSIBLE).index_copy_(-1, useful, allowed)
    return torch.where(urgent[..., None], only, scores)


def dynamic_beam_allocation(
    scores: Tensor, ids: Tensor, logprob: Tensor, width: int, constraints: PhraseConstraints
) -> Candidates:
    """Candidates ordered so that hypotheses with different numbers of constraint words share the beam.

    Grid beam search (Hokamp and Liu 2017) with one beam for all banks (dynamic beam allocation, Post and
    Vilar 2018): a bank is the number of phrase words in a candidate. The order is the best candidate of every
    bank, the bank with most words first, then the second best of every bank, and so on; a place that one bank
    cannot fill goes to the others. The candidates are the most likely tokens of every hypothesis and the
    tokens that continue its unmet phrases.

    Args:
        scores: (B, W, V) of the next token, after all constraints.
        ids: (B, W, t) of the hypotheses.
        logprob: (B, W) of the hypotheses.
        width: size of the beam.

    Returns:
        All candidates in this order; impossible ones last.
    """
    images, active, size = scores.shape
    progress = phrase_progress(ids, constraints)
    onward = scores.gather(-1, progress.next).masked_fill(progress.met, IMPOSSIBLE)  # (B, W, P)
    # two phrases may continue with the same token: it is one candidate
    same = (progress.next[..., None] == progress.next[..., None, :]) & ~progress.met[..., None, :]
    onward = onward.masked_fill(same.tril(-1).any(-1), IMPOSSIBLE)
    penalty = torch.zeros_like(onward).masked_fill_(~progress.met, IMPOSSIBLE)
    free = scores.scatter_add(-1, progress.next, penalty)  # without the tokens of `onward`
    free_logprobs, free_ids = free.topk(min(2 * width, size))  # (B, W, 2 x width)
    word_logprobs = torch.cat([free_logprobs, onward], -1)
    next_ids = torch.cat([free_ids, progress.next], -1)
    parents = torch.arange(active, device=ids.device)[:, None].expand_as(next_ids)
    candidates = Candidates(
        parents=parents.flatten(1),
        ids=next_ids.flatten(1),
        word_logprobs=word_logprobs.flatten(1),
        logprob=(word_logprobs + logprob[..., None]).flatten(1),
    )
    candidates = candidates.take(candidates.logprob.argsort(descending=True, stable=True))
    rows = torch.arange(images, device=ids.device)[:, None]
    states = constraints.after(progress.states[rows, candidates.parents], candidates.ids)  # (B, C, P)
    total = int(constraints.remaining[constraints.starts].sum())
    bank = (total - _progress(states, constraints).missing()).clamp(min=0)  # (B, C)
    one_hot = F.one_hot(bank, total + 1)  # (B, C, banks)
    place = one_hot.cumsum(1).gather(-1, bank[..., None])[..., 0]  # 1 for the best of its bank
    order = place * one_hot.shape[-1] - bank
    order = order.masked_fill(candidates.logprob == IMPOSSIBLE, torch.iinfo(order.dtype).max)
    return candidates.take(order.argsort(stable=True))
