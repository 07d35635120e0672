"""Captions drawn at random, no two the same, for any Decoder. Knows ids, never words or pixels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from captioning.generation import noise
from captioning.generation.drawing import SamplingConfig, blocks, filter_logits
from captioning.generation.opening import prefill
from captioning.generation.processors import RuleIds, next_scores
from captioning.generation.scores import IMPOSSIBLE, PAD, emptied, length_score, ranked, trimmed
from captioning.models.decoders.base import Decoder, reorder_state
from captioning.tensors import Hypotheses


@dataclass(frozen=True, kw_only=True)
class StochasticBeamConfig(SamplingConfig):
    """`samples` different captions an image, fewer where there are no more."""

    kind: Literal["stochastic_beam"] = "stochastic_beam"
    samples: Annotated[int, Field(ge=1)] = 5

    @property
    def live(self) -> int:
        """Sequences an image, at most words."""
        return self.samples

    def finding(self, count: int) -> StochasticBeamConfig:
        return replace(self, samples=count)

    def search(
        self,
        decoder: Decoder,
        memory: Any,
        *,
        start: int,
        end: int,
        suppress_ids: Collection[int],
        ids: RuleIds | None = None,
        keys: Tensor | None = None,
    ) -> Hypotheses:
        return stochastic_beam(
            decoder, memory, self, start=start, end=end, suppress_ids=suppress_ids, ids=ids, keys=keys
        )


class Branches(NamedTuple):
    """Beginnings of captions, C an image, and some that have ended."""

    drawn: Tensor  # (B, C) float64: log-probability of being drawn word by word
    gumbel: (
        Tensor  # (B, C) float64: the largest Gumbel-perturbed log-probability of the captions that begin so
    )
    ended: Tensor  # (B, C) bool


def stochastic_beam(
    decoder: Decoder,
    memory: Any,
    config: StochasticBeamConfig,
    *,
    start: int,
    end: int,
    suppress_ids: Collection[int],
    ids: RuleIds | None = None,
    keys: Tensor | None = None,
) -> Hypotheses:
    """A sample of captions without replacement (Kool et al. 2019, algorithm 1), ranked by score.

    The captions with the largest Gumbel-perturbed log-probabilities are such a sample, as if one drew again
    and again and left out what came before. They are found from the top of the tree of words: a branch's
    perturbed log-probability is the largest below it. Captions that the length limit cuts off are leaves of
    the tree as well. See `captioning.generation.search`.
    """
    opening = prefill(
        decoder,
        memory,
        config,
        width=1,
        live=config.samples,
        start=start,
        end=end,
        suppress_ids=suppress_ids,
        ids=ids,
    )
    decoder, limits, state, reading, words, word_logprobs = opening
    if keys is None:
        keys = torch.arange(len(reading), device=reading.device)
    stream = noise.streams(config.seed, keys, config.samples)  # (B, K)
    nothing = torch.zeros_like(reading, dtype=torch.float64)
    branches = Branches(drawn=nothing, gumbel=nothing, ended=nothing.bool())
    for length in range(words.shape[-1] + 1, config.max_length + 1):
        step, state = decoder.step(reading, state, memory)
        scores = next_scores(decoder.logits(step.hidden), words, limits)  # (B, K, V)
        kept = filter_logits(scores, config)
        # where no word is left the logarithm of a share is no number
        logprob = torch.log_softmax(kept, -1).masked_fill_(torch.isneginf(kept), IMPOSSIBLE)
        streams = noise.mixed(stream[:, : reading.shape[1]], length)
        over = branches.ended
        branches, parents, reading = _grown(branches, logprob, streams, config.samples, end)
        each = reorder_state(scores, parents).gather(-1, reading[..., None])
        each = each.masked_fill_(reorder_state(over, parents)[..., None], 0.0)
        del scores, kept, logprob  # as in `beam`
        words = torch.cat([reorder_state(words, parents), reading[..., None]], -1)
        word_logprobs = torch.cat([reorder_state(word_logprobs, parents), each], -1)
        if (branches.ended | (branches.gumbel == IMPOSSIBLE)).all():
            break
        state = reorder_state(state, parents)
    last = (words == end).int().argmax(-1) + 1
    lengths = torch.where(branches.ended, last, words.shape[-1])
    logprob = word_logprobs.sum(-1)
    found = Hypotheses(
        ids=words,
        lengths=lengths,
        logprob=logprob,
        word_logprobs=word_logprobs,
        scores=length_score(logprob, lengths, config.length_rule, config.alpha),
        finished=branches.ended,
    )
    return trimmed(ranked(emptied(found, branches.gumbel == IMPOSSIBLE)))


def _grown(
    branches: Branches, logprob: Tensor, state: Tensor, count: int, end: int
) -> tuple[Branches, Tensor, Tensor]:
    """The `count` branches of each image with the largest `gumbel`, one word longer unless they had ended.

    A word is reached by way of its block, a branching like any other: with the best `count` blocks alone to
    be looked into, 2 sqrt(V) random numbers a hypothesis do in place of V.

    Args:
        logprob: (B, K, V) of the next word, sums to 1.
        state: (B, K) of `noise`.

    Returns:
        The branches; (B, C) the places of their parents; (B, C) their words, <pad> behind the end.
    """
    images, width, size = logprob.shape
    rows = torch.arange(images, device=logprob.device)[:, None]
    split = blocks(logprob)  # (B, K, J, S)
    count_blocks, inside = split.shape[2:]
    drawn = branches.drawn[..., None] + split.logsumexp(-1)  # (B, K, J)
    fresh = drawn + noise.gumbel(noise.mixed(state, 0), count_blocks)
    fresh = below(branches.gumbel, fresh).masked_fill(branches.ended[..., None], IMPOSSIBLE)
    top, index = fresh.flatten(1).topk(min(count, width * count_blocks))  # (B, C)
    parents, block = index // count_blocks, index % count_blocks
    drawn = branches.drawn[rows, parents][..., None] + split[rows, parents, block]  # (B, C, S)
    fresh = drawn + noise.gumbel(noise.mixed(noise.mixed(state, 1)[rows, parents], block), inside)
    fresh = below(top, fresh)
    words = block[..., None] * inside + torch.arange(inside, device=logprob.device)
    parents = parents[..., None].expand_as(words)
    own = torch.arange(width, device=logprob.device).expand(images, -1)
    gumbel = torch.cat([fresh.flatten(1), branches.gumbel.masked_fill(~branches.ended, IMPOSSIBLE)], 1)
    drawn = torch.cat([drawn.flatten(1), branches.drawn], 1)
    words = torch.cat([words.flatten(1).clamp(max=size - 1), torch.full_like(own, PAD)], 1)
    parents = torch.cat([parents.flatten(1), own], 1)
    gumbel, chosen = gumbel.topk(min(count, gumbel.shape[1]))
    words, parents = words.gather(1, chosen), parents.gather(1, chosen)
    ended = branches.ended.gather(1, parents) | (words == end)
    return Branches(drawn.gather(1, chosen), gumbel, ended), parents, words


def below(top: Tensor, fresh: Tensor) -> Tensor:
    """Gumbel variables `fresh` (..., n) given that the largest is `top` (...). Appendix B.3 of Kool et al."""
    top = top[..., None]
    gap = torch.log1p(-torch.exp(fresh - fresh.amax(-1, keepdim=True)))
    shift = top - fresh + gap
    found = top - shift.clamp(min=0) - torch.log1p(torch.exp(-shift.abs()))
    return found.masked_fill(torch.isneginf(fresh) | torch.isneginf(top), IMPOSSIBLE)
