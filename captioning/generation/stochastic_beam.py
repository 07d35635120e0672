"""Stochastic beam search: captions sampled without replacement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from captioning.generation.generate_loop import as_hypotheses
from captioning.generation.prefill import Prefill
from captioning.generation.processors import process_logits
from captioning.generation.sampling import SamplingConfig, blocks, filter_logits
from captioning.generation.scores import IMPOSSIBLE, PAD, clear_rows, rank, trim
from captioning.models.decoders.base import reorder_state
from captioning.ops import noise
from captioning.tensors import Hypotheses, widest_float


@dataclass(frozen=True, kw_only=True)
class StochasticBeamConfig(SamplingConfig):
    """`samples` different captions of each image, fewer where there are no more."""

    kind: Literal["stochastic_beam"] = "stochastic_beam"
    samples: Annotated[int, Field(ge=1, le=10_000)] = 5

    def with_n_best(self, n_best: int) -> StochasticBeamConfig:
        return replace(self, samples=n_best)

    def run(self, prefill: Prefill) -> Hypotheses:
        return stochastic_beam_search(prefill, self)


class Branches(NamedTuple):
    """Beginnings of captions and finished captions, C per image."""

    phi: Tensor  # (B, C) of `widest_float`: log-probability of sampling it word by word
    gumbel: (
        Tensor  # (B, C) of `widest_float`: the largest Gumbel-perturbed log-probability of its completions
    )
    finished: Tensor  # (B, C) bool


def stochastic_beam_search(prefill: Prefill, config: StochasticBeamConfig) -> Hypotheses:
    """A sample of captions without replacement (Kool et al. 2019, algorithm 1), ranked by score.

    The captions with the largest Gumbel-perturbed log-probabilities are such a sample, as if one sampled
    again and again and dropped repeated captions. They are found from the root of the tree of words: a
    branch's perturbed log-probability is the largest of its leaves. Captions that the length limit cuts off
    are leaves too. See `captioning.generation.search`.
    """
    decoder, memory, processors, state, last_ids, ids, word_logprobs, keys = prefill
    noise_state = noise.sequence_states(config.seed, keys, config.samples)  # (B, K)
    zeros = torch.zeros_like(last_ids, dtype=widest_float(last_ids.device))
    branches = Branches(phi=zeros, gumbel=zeros, finished=zeros.bool())
    for length in range(ids.shape[-1] + 1, config.max_length + 1):
        step, state = decoder.step(last_ids, state, memory)
        scores = process_logits(decoder.logits(step.hidden), ids, processors)  # (B, K, V)
        filtered = filter_logits(scores, config)
        # where no word is left, log_softmax is NaN
        logprob = torch.log_softmax(filtered, -1).masked_fill_(torch.isneginf(filtered), IMPOSSIBLE)
        step_state = noise.mix(noise_state[:, : last_ids.shape[1]], length)
        finished = branches.finished
        branches, parents, last_ids = _grow(branches, logprob, step_state, config.samples, processors.end)
        chosen_logprobs = reorder_state(scores, parents).gather(-1, last_ids[..., None])
        chosen_logprobs.masked_fill_(reorder_state(finished, parents)[..., None], 0.0)
        del scores, filtered, logprob  # as in `beam_search`
        ids = torch.cat([reorder_state(ids, parents), last_ids[..., None]], -1)
        word_logprobs = torch.cat([reorder_state(word_logprobs, parents), chosen_logprobs], -1)
        if (branches.finished | (branches.gumbel == IMPOSSIBLE)).all():
            break
        state = reorder_state(state, parents)
    hypotheses = as_hypotheses(ids, word_logprobs, config, finished=branches.finished, end=processors.end)
    return trim(rank(clear_rows(hypotheses, branches.gumbel == IMPOSSIBLE)))


def _grow(
    branches: Branches, logprob: Tensor, state: Tensor, count: int, end: int
) -> tuple[Branches, Tensor, Tensor]:
    """The `count` branches of each image with the largest `gumbel`, one word longer unless finished.

    A word is reached through its block, a branching like any other: as only the best `count` blocks are
    expanded, a hypothesis needs 2 sqrt(V) random numbers instead of V.

    Args:
        logprob: (B, K, V) of the next word, probabilities sum to 1.
        state: (B, K) of `noise`.

    Returns:
        The branches; (B, C) the indices of their parents; (B, C) their words, <pad> after the end.
    """
    images, width, vocabulary_size = logprob.shape
    rows = torch.arange(images, device=logprob.device)[:, None]
    split = blocks(logprob)  # (B, K, J, S)
    num_blocks, size = split.shape[2:]
    phi = branches.phi[..., None] + split.logsumexp(-1)  # (B, K, J)
    fresh = phi + noise.gumbel(noise.mix(state, 0), num_blocks)
    fresh = condition_on_max(branches.gumbel, fresh).masked_fill(branches.finished[..., None], IMPOSSIBLE)
    top, index = fresh.flatten(1).topk(min(count, width * num_blocks))  # (B, C)
    parents, block = index // num_blocks, index % num_blocks
    phi = branches.phi[rows, parents][..., None] + split[rows, parents, block]  # (B, C, S)
    fresh = phi + noise.gumbel(noise.mix(noise.mix(state, 1)[rows, parents], block), size)
    fresh = condition_on_max(top, fresh)
    words = block[..., None] * size + torch.arange(size, device=logprob.device)
    parents = parents[..., None].expand_as(words)
    # finished branches compete with the new ones
    index = torch.arange(width, device=logprob.device).expand(images, -1)
    gumbel = torch.cat([fresh.flatten(1), branches.gumbel.masked_fill(~branches.finished, IMPOSSIBLE)], 1)
    phi = torch.cat([phi.flatten(1), branches.phi], 1)
    words = torch.cat([words.flatten(1).clamp(max=vocabulary_size - 1), torch.full_like(index, PAD)], 1)
    parents = torch.cat([parents.flatten(1), index], 1)
    gumbel, chosen = gumbel.topk(min(count, gumbel.shape[1]))
    words, parents = words.gather(1, chosen), parents.gather(1, chosen)
    finished = branches.finished.gather(1, parents) | (words == end)
    return Branches(phi.gather(1, chosen), gumbel, finished), parents, words


def condition_on_max(top: Tensor, fresh: Tensor) -> Tensor:
    """Gumbel variables `fresh` (..., n) given that their maximum is `top` (...). Appendix B.3 of Kool et al."""
    top = top[..., None]
    gap = torch.log1p(-torch.exp(fresh - fresh.amax(-1, keepdim=True)))
    shift = top - fresh + gap
    conditioned = top - shift.clamp(min=0) - torch.log1p(torch.exp(-shift.abs()))
    return conditioned.masked_fill(torch.isneginf(fresh) | torch.isneginf(top), IMPOSSIBLE)
