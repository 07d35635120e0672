"""Words and phrases that a caption must contain. Knows ids and scores, no decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from captioning.generation.scores import IMPOSSIBLE, Candidates


class Forced(NamedTuple):
    """P phrases, each of which every caption contains, and how many words there are for them."""

    phrases: tuple[Tensor, ...]  # each (l,) int64
    lengths: Tensor  # (P,)
    last: int  # words a caption has at most, <end> not counted
    end: int

    @classmethod
    def of(
        cls, phrases: Sequence[Sequence[int]], *, last: int, end: int, device: torch.device
    ) -> Forced | None:
        """None where there is nothing to say. Raises ValueError where `last` words are too few."""
        if not phrases:
            return None
        lengths = [len(phrase) for phrase in phrases]
        if sum(lengths) > last or not all(lengths):
            raise ValueError(f"phrases of {lengths} words do not fit a caption of {last}")
        return cls(
            tuple(torch.tensor(phrase, device=device) for phrase in phrases),
            torch.tensor(lengths, device=device),
            last,
            end,
        )


class Progress(NamedTuple):
    """How far each sequence has come with each phrase."""

    met: Tensor  # (B, K, P) bool: the phrase is there
    begun: Tensor  # (B, K, P) int64: words of the phrase that the sequence ends in, fewer than all
    open: Tensor  # (B, K) words of all the phrases not met
    next: Tensor  # (B, K, P) the word that would go on with the phrase


def progress(words: Tensor, forced: Forced) -> Progress:
    """What of the phrases is in `ids` (B, K, t). Computed from the words alone: no state to be kept."""
    said = words.shape[-1]
    met, begun, following = [], [], []
    for phrase in forced.phrases:
        length = len(phrase)
        none = words.new_zeros(words.shape[:-1])
        there = (words.unfold(-1, length, 1) == phrase).all(-1).any(-1) if said >= length else none.bool()
        reached = none
        for count in range(1, min(length - 1, said) + 1):
            ends_so = (words[..., said - count :] == phrase[:count]).all(-1)
            reached = reached.masked_fill(
                ends_so, count
            )  # the longest wins, as in Knuth, Morris and Pratt 1977
        met.append(there)
        begun.append(reached)
        following.append(phrase[reached])
    all_met = torch.stack(met, -1)
    return Progress(
        met=all_met,
        begun=torch.stack(begun, -1),
        open=(forced.lengths * ~all_met).sum(-1),
        next=torch.stack(following, -1),
    )


def enforce_constraints(scores: Tensor, unruled: Tensor, words: Tensor, forced: Forced) -> Tensor:
    """No `<end>` before all phrases are met; and no word behind which there is no room for what is missing.

    What is missing is counted as if phrases could not overlap, so there always is a word that may come: the
    next one of the phrase that the sequence has got furthest with. Where other rules forbid all such words
    they come nevertheless.

    Args:
        scores: (B, K, V), written into.
        unruled: (B, K, V) before rules.
    """
    state = progress(words, forced)
    scores[..., forced.end].masked_fill_(state.open > 0, IMPOSSIBLE)
    room = forced.last - words.shape[-1] - 1  # behind the next word
    urgent = (state.open > 0) & (state.open > room)  # (B, K): not any word
    if not urgent.any():
        return scores
    useful = torch.cat(forced.phrases).unique()  # (U,)
    longer = F.pad(words[:, :, None].expand(-1, -1, len(useful), -1), (0, 1))  # (B, K, U, t + 1)
    longer[..., -1] = useful
    fits = missing(progress(longer.flatten(1, 2), forced)).view(longer.shape[:-1]) <= room
    allowed, despite = (part[..., useful].masked_fill(~fits, IMPOSSIBLE) for part in (scores, unruled))
    allowed = torch.where((allowed == IMPOSSIBLE).all(-1, keepdim=True), despite, allowed)
    only = torch.full_like(scores, IMPOSSIBLE).index_copy_(-1, useful, allowed)
    return torch.where(urgent[..., None], only, scores)


def missing(state: Progress) -> Tensor:
    """(B, K) words that the phrases still need, when the one that is furthest is gone on with."""
    return state.open - state.begun.masked_fill(state.met, 0).amax(-1)


def dynamic_beam_allocation(
    scores: Tensor, words: Tensor, logprob: Tensor, width: int, forced: Forced
) -> Candidates:
    """Ways to go on, so ordered that hypotheses at all stages of the phrases get places among the first.

    Grid beam search (Hokamp and Liu 2017) with one beam for all stages (dynamic beam allocation, Post and
    Vilar 2018): a bank is the number of words of the phrases that a way has said. First come the best of
    each bank, the one that said most first; then the second best of each ... so that a place which one bank
    cannot fill goes to the others. Candidates are each hypothesis's likeliest words and the words that go on
    with its open phrases.

    Args:
        scores: (B, W, V) of the next words, after all rules.
        words: (B, W, t) of the hypotheses.
        logprob: (B, W) of the hypotheses.
        width: places.

    Returns:
        All candidates, in that order; impossible ones last.
    """
    images, live, size = scores.shape
    state = progress(words, forced)
    onward = scores.gather(-1, state.next).masked_fill(state.met, IMPOSSIBLE)  # (B, W, P)
    # two phrases may go on with the same word: it is one candidate
    same = (state.next[..., None] == state.next[..., None, :]) & ~state.met[..., None, :]
    onward = onward.masked_fill(same.tril(-1).any(-1), IMPOSSIBLE)
    shut = torch.zeros_like(onward).masked_fill_(~state.met, IMPOSSIBLE)
    free = scores.scatter_add(-1, state.next, shut)  # without the words of `onward`
    likely, likely_words = free.topk(min(2 * width, size))  # (B, W, 2 x width)
    word_logprobs = torch.cat([likely, onward], -1)
    chosen = torch.cat([likely_words, state.next], -1)
    parents = torch.arange(live, device=words.device)[:, None].expand_as(chosen)
    found = Candidates(
        parents=parents.flatten(1),
        ids=chosen.flatten(1),
        word_logprobs=word_logprobs.flatten(1),
        logprob=(word_logprobs + logprob[..., None]).flatten(1),
    )
    order = found.logprob.argsort(descending=True, stable=True)
    found = Candidates(*(part.gather(1, order) for part in found))
    rows = torch.arange(images, device=words.device)[:, None]
    after = progress(torch.cat([words[rows, found.parents], found.ids[..., None]], -1), forced)
    bank = int(forced.lengths.sum()) - missing(after)  # (B, C)
    inside = F.one_hot(bank, int(forced.lengths.sum()) + 1)  # (B, C, banks)
    place = inside.cumsum(1).gather(-1, bank[..., None])[..., 0]  # 1 for the best of its bank
    turn = place * inside.shape[-1] - bank
    turn = turn.masked_fill(found.logprob == IMPOSSIBLE, torch.iinfo(turn.dtype).max)
    order = turn.argsort(stable=True)
    return Candidates(*(part.gather(1, order) for part in found))
