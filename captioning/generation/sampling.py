"""Sampling with temperature, top-k, top-p, typical and min-p filtering."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from captioning.generation.base import RankedSearchConfig
from captioning.generation.generate_loop import generate_loop
from captioning.generation.prefill import Prefill
from captioning.generation.scores import IMPOSSIBLE, rank, trim
from captioning.ops import noise
from captioning.tensors import Hypotheses
from captioning.utils.validation import Seed

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(RankedSearchConfig):
    """The options of a search that samples words from the allowed ones, renormalised.

    Filters apply in this order, each to the words that the ones before it have left, renormalised. Log-probabilities in
    the results are the model's own. Differs: each paper has its filter alone; Hugging Face's `generate` has the same
    order, but min_p before typical.

    Attributes:
        samples: number of captions of each image.
        temperature: the logits are divided by it.
        top_k: only the k most likely words (Fan et al. 2018), and those tied with the last of them.
        top_p: only the most likely words that together have this probability (Holtzman et al. 2020).
        typical: only the words whose information is nearest the entropy and that together have this
            probability (Meister et al. 2023).
        min_p: only words with this share of the most likely word's probability (Nguyen et al. 2024).
        seed: of the random numbers. The captions of an image depend on the seed and its key alone.
    """

    samples: Annotated[int, Field(ge=1, le=10_000)] = 1
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_p: Share | None = None
    typical: Share | None = None
    min_p: Share | None = None
    seed: Seed = 0

    @property
    def num_sequences(self) -> int:
        return self.samples


@dataclass(frozen=True, kw_only=True)
class SampleConfig(SamplingConfig):
    """Independent samples, which may be equal, ranked by score.

    An image's j-th sample depends on the seed, the image's key and j only: with more samples, the first ones stay
    the same.
    """

    kind: Literal["sample"] = "sample"

    @property
    def num_initial(self) -> int:
        return self.samples

    def with_n_best(self, n_best: int) -> SampleConfig:
        return replace(self, samples=n_best)

    def run(self, prefill: Prefill) -> Hypotheses:
        return trim(rank(self.draw(prefill)))

    def draw(self, prefill: Prefill) -> Hypotheses:
        """The samples in the order of their sequences."""
        state = noise.sequence_states(self.seed, prefill.keys, self.samples)

        def sample(scores: Tensor, length: int) -> Tensor:
            return multinomial(filter_logits(scores, self), noise.mix(state, length))

        return generate_loop(prefill, self, sample)


def filter_logits(scores: Tensor, config: SamplingConfig) -> Tensor:
    """Unnormalised scores (B, K, V) of the distribution to sample from; minus infinity is never sampled."""
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
    threshold = scores.topk(min(count, scores.shape[-1])).values[..., -1:]
    return scores.masked_fill(scores < threshold, IMPOSSIBLE)


def top_p(scores: Tensor, share: float) -> Tensor:
    return _smallest_set(scores, -scores, share)


def typical(scores: Tensor, share: float) -> Tensor:
    """Eqs. 8 and 9 of Meister et al. 2023."""
    logprob = torch.log_softmax(scores, -1)
    entropy = -(logprob.exp() * logprob.clamp(min=torch.finfo(logprob.dtype).min)).sum(-1, keepdim=True)
    return _smallest_set(scores, (-logprob - entropy).abs(), share)


def min_p(scores: Tensor, share: float) -> Tensor:
    return scores.masked_fill(scores < scores.amax(-1, keepdim=True) + math.log(share), IMPOSSIBLE)


def _smallest_set(scores: Tensor, cost: Tensor, share: float) -> Tensor:
    """The fewest words of least `cost` whose probabilities sum to `share`, at least one."""
    if share == 1:
        return scores
    order = cost.argsort(stable=True)
    mass = torch.softmax(scores, -1).gather(-1, order)
    before = mass.cumsum(-1) - mass
    # a few ulps less, as 0.5 + 0.3 may round to less than 0.8
    removed = (before > share - 8 * torch.finfo(mass.dtype).eps) & (before > 0)
    return scores.masked_fill(torch.zeros_like(removed).scatter(-1, order, removed), IMPOSSIBLE)


def blocks(scores: Tensor) -> Tensor:
    """(B, K, V) -> (B, K, J, S) with J about S: word w is in block w // S; the last block is padded."""
    vocabulary_size = scores.shape[-1]
    size = math.isqrt(vocabulary_size - 1) + 1
    count = -(-vocabulary_size // size)
    return F.pad(scores, (0, count * size - vocabulary_size), value=IMPOSSIBLE).unflatten(-1, (count, size))


def multinomial(scores: Tensor, state: Tensor) -> Tensor:
    """One word sampled from each distribution, (B, K).

    Gumbel-max (Maddison et al. 2014), first over blocks of words, then over the words of the block: exact,
    with 2 sqrt(V) random numbers instead of V. Unlike inversion of the cumulative distribution, scores that
    differ by rounding almost always give the same words.

    Args:
        scores: (B, K, V) unnormalised.
        state: (B, K) of `noise`, for this position.
    """
    split = blocks(scores)  # (B, K, J, S)
    totals = split.logsumexp(-1)
    block = (totals + noise.gumbel(noise.mix(state, 0), totals.shape[-1])).argmax(-1, keepdim=True)
    words = split.gather(2, block[..., None].expand(-1, -1, -1, split.shape[-1]))[:, :, 0]  # (B, K, S)
    word = (words + noise.gumbel(noise.mix(state, 1), words.shape[-1])).argmax(-1)
    return (block[..., 0] * split.shape[-1] + word).clamp(max=scores.shape[-1] - 1)
