"""Forced words and phrases: constrained decoding on ids and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from captioning.generation.scores import IMPOSSIBLE, Candidates


class PhraseConstraints(NamedTuple):
    """P phrases that every caption must contain, and the number of words available for them."""

    phrases: tuple[Tensor, ...]  # each (l,) int64
    lengths: Tensor  # (P,)
    max_words: int  # of a caption, <end> not counted
    end: int

    @classmethod
    def build(
        cls, phrases: Sequence[Sequence[int]], *, max_words: int, end: int, device: torch.device
    ) -> PhraseConstraints | None:
        """None without phrases. Raises ValueError where they do not fit `max_words`."""
        if not phrases:
            return None
        lengths = [len(phrase) for phrase in phrases]
        if sum(lengths) > max_words or not all(lengths):
            raise ValueError(f"phrases of {lengths} words do not fit a caption of {max_words}")
        return cls(
            tuple(torch.tensor(phrase, device=device) for phrase in phrases),
            torch.tensor(lengths, device=device),
            max_words,
            end,
        )


class PhraseProgress(NamedTuple):
    """How much of every phrase each sequence contains."""

    met: Tensor  # (B, K, P) bool: the sequence contains the phrase
    matched: Tensor  # (B, K, P) int64: words of the phrase at the end of the sequence, fewer than all
    open: Tensor  # (B, K) total number of words of the unmet phrases
    next: Tensor  # (B, K, P) the id that would continue the phrase

    def missing(self) -> Tensor:
        """(B, K) number of words still needed if the furthest unmet phrase is continued."""
        return self.open - self.matched.masked_fill(self.met, 0).amax(-1)


def phrase_progress(ids: Tensor, constraints: PhraseConstraints) -> PhraseProgress:
    """The progress of sequences `ids` (B, K, t), computed from the ids alone."""
    size = ids.shape[-1]
    met, matched, following = [], [], []
    for phrase in constraints.phrases:
        length = len(phrase)
        count = ids.new_zeros(ids.shape[:-1])
        met.append((ids.unfold(-1, length, 1) == phrase).all(-1).any(-1) if size >= length else count.bool())
        for prefix in range(1, min(length - 1, size) + 1):
            matches = (ids[..., size - prefix :] == phrase[:prefix]).all(-1)
            count = count.masked_fill(matches, prefix)  # the longest, as in Knuth, Morris and Pratt 1977
        matched.append(count)
        following.append(phrase[count])
    all_met = torch.stack(met, -1)
    return PhraseProgress(
        met=all_met,
        matched=torch.stack(matched, -1),
        open=(constraints.lengths * ~all_met).sum(-1),
        next=torch.stack(following, -1),
    )


def enforce_constraints(
    scores: Tensor, unconstrained: Tensor, ids: Tensor, constraints: PhraseConstraints
) -> Tensor:
    """Forbid `<end>` before all phrases occur, and tokens that leave too few words for the missing phrases.

    Missing words are counted as if phrases could not overlap, so one token is always possible: the next one
    of the furthest phrase. It is allowed even where other constraints forbid all such tokens.

    Args:
        scores: (B, K, V), may be overwritten.
        unconstrained: (B, K, V) before the other constraints.
    """
    progress = phrase_progress(ids, constraints)
    scores[..., constraints.end].masked_fill_(progress.open > 0, IMPOSSIBLE)
    room = constraints.max_words - ids.shape[-1] - 1  # words after the next one
    urgent = (progress.open > 0) & (progress.open > room)  # (B, K): the next token is not free
    if not urgent.any():
        return scores
    useful = torch.cat(constraints.phrases).unique()  # (U,)
    longer = F.pad(ids[:, :, None].expand(-1, -1, len(useful), -1), (0, 1))  # (B, K, U, t + 1)
    longer[..., -1] = useful
    fits = phrase_progress(longer.flatten(1, 2), constraints).missing().view(longer.shape[:-1]) <= room
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
    longer = torch.cat([ids[rows, candidates.parents], candidates.ids[..., None]], -1)
    total = int(constraints.lengths.sum())
    bank = total - phrase_progress(longer, constraints).missing()  # (B, C)
    one_hot = F.one_hot(bank, total + 1)  # (B, C, banks)
    place = one_hot.cumsum(1).gather(-1, bank[..., None])[..., 0]  # 1 for the best of its bank
    order = place * one_hot.shape[-1] - bank
    order = order.masked_fill(candidates.logprob == IMPOSSIBLE, torch.iinfo(order.dtype).max)
    return candidates.take(order.argsort(stable=True))
