"""What random searches share: temperature, cutting off the tail, the draw. Knows scores (B, K, V), no decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from captioning.generation import noise
from captioning.generation.processors import Ranked
from captioning.generation.scores import IMPOSSIBLE

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Ranked):
    """The settings of a search that draws words at random, from what the rules leave, renormalised.

    What is set narrows the distribution in this order. A log-probability in the results is the model's own.

    Attributes:
        temperature: the logits are divided by it.
        top_k: only the k likeliest words (Fan et al. 2018), and those as likely as the last of them.
        top_p: only the likeliest words that together have that share (Holtzman et al. 2020).
        typical: only the words whose information is nearest the entropy and that together have that share
            (Meister et al. 2023).
        min_p: only words with that share of the likeliest word's probability (Nguyen et al. 2024).
        seed: another one gives other captions. An image's draws depend on the seed and its key alone.
    """

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_p: Share | None = None
    typical: Share | None = None
    min_p: Share | None = None
    seed: int = 0


def filter_logits(scores: Tensor, config: SamplingConfig) -> Tensor:
    """Scores (B, K, V), unnormalised, of the distribution to draw from; minus infinity is never drawn."""
    if config.temperature != 1:
        scores = scores / config.temperature
    if config.top_k is not None:
        scores = top_k(scores, config.top_k)
    if config.top_p is not None:
        scores = top_p(scores, config.top_p)
    if config.typical is not None:
        scores = typical(scores, config.typical)
    if config.min_p is not None:
        scores = min_p(scores, config.min_p)
    return scores


def top_k(scores: Tensor, count: int) -> Tensor:
    least = scores.topk(min(count, scores.shape[-1])).values[..., -1:]
    return scores.masked_fill(scores < least, IMPOSSIBLE)


def top_p(scores: Tensor, share: float) -> Tensor:
    return _first_share(scores, -scores, share)


def typical(scores: Tensor, share: float) -> Tensor:
    """Eqs. 8 and 9 of Meister et al. 2023."""
    logprob = torch.log_softmax(scores, -1)
    entropy = -(logprob.exp() * logprob.clamp(min=torch.finfo(logprob.dtype).min)).sum(-1, keepdim=True)
    return _first_share(scores, (-logprob - entropy).abs(), share)


def min_p(scores: Tensor, share: float) -> Tensor:
    return scores.masked_fill(scores < scores.amax(-1, keepdim=True) + math.log(share), IMPOSSIBLE)


def _first_share(scores: Tensor, cost: Tensor, share: float) -> Tensor:
    """The fewest words of least `cost` whose probabilities sum to `share`, at least one."""
    if share == 1:
        return scores
    order = cost.argsort(stable=True)
    mass = torch.softmax(scores, -1).gather(-1, order)
    before = mass.cumsum(-1) - mass
    # a hair less, for 0.5 + 0.3 may round to less than 0.8
    left = (before > share - 8 * torch.finfo(mass.dtype).eps) & (before > 0)
    return scores.masked_fill(torch.zeros_like(left).scatter(-1, order, left), IMPOSSIBLE)


def blocks(scores: Tensor) -> Tensor:
    """(B, K, V) -> (B, K, J, S) with J about S: word w is in block w // S; the last one is filled up."""
    size = scores.shape[-1]
    inside = math.isqrt(size - 1) + 1
    count = -(-size // inside)
    return F.pad(scores, (0, count * inside - size), value=IMPOSSIBLE).unflatten(-1, (count, inside))


def draw(scores: Tensor, state: Tensor) -> Tensor:
    """One word from each distribution, (B, K).

    Gumbel-max (Maddison et al. 2014), first over blocks of words, then over the words of the block: exact,
    with 2 sqrt(V) random numbers in place of V. Against inversion of the cumulated probabilities it has the
    merit that scores which differ by rounding give different words as rarely as can be.

    Args:
        scores: (B, K, V) unnormalised.
        state: (B, K) of `noise`, of this word.
    """
    split = blocks(scores)  # (B, K, J, S)
    whole = split.logsumexp(-1)
    block = (whole + noise.gumbel(noise.mixed(state, 0), whole.shape[-1])).argmax(-1, keepdim=True)
    words = split.gather(2, block[..., None].expand(-1, -1, -1, split.shape[-1]))[:, :, 0]  # (B, K, S)
    word = (words + noise.gumbel(noise.mixed(state, 1), words.shape[-1])).argmax(-1)
    return (block[..., 0] * split.shape[-1] + word).clamp(max=scores.shape[-1] - 1)
