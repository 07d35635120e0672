"""How recurrent decoders read image regions: projection, mean region, and additive, dot or multi-head attention."""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioning.ops.attention import additive_scores, attend
from captioning.tensors import Features


class AttentionMemory(NamedTuple):
    """Values and keys of the regions, computed once per image."""

    values: Tensor  # (B, N, D)
    keys: Tensor  # (B, N, A)
    mask: Tensor | None  # (B, N)


def projection(channels: int, size: int | None, *, dropout: float) -> nn.Module:
    """Regions (B, N, channels) -> (B, N, size), normalised; the identity if `size` is None."""
    if size is None:
        return nn.Identity()
    return nn.Sequential(nn.Linear(channels, size), nn.LayerNorm(size), nn.ReLU(), nn.Dropout(dropout))


def mean_region(features: Features) -> Tensor:
    """The mean over the regions that `mask` keeps: (B, D)."""
    if features.mask is None:
        return features.regions.mean(1)
    weight = features.mask.to(features.regions.dtype)
    return torch.einsum("bnd,bn->bd", features.regions, weight) / weight.sum(1, keepdim=True)


class RegionAttention(nn.Module, abc.ABC):
    """Attention over the regions, given a query."""

    context_size: int  # channels of the context

    @abc.abstractmethod
    def encode_memory(self, features: Features) -> AttentionMemory:
        """The part that is computed once per image."""

    @abc.abstractmethod
    def forward(self, query: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        """`query` (B, K, A) -> context (B, K, context_size) and attention (B, K, N), whose rows sum to 1."""

    @abc.abstractmethod
    def init_weights(self) -> None:
        """Fill the weights for the start of training."""


class Additive(RegionAttention):
    """e_i = w . tanh(W a_i + b + query), softmax, expected region (Bahdanau et al. 2015; Xu et al. 2015, eq. 4)."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.context_size = channels
        self.key_proj = nn.Linear(channels, size)
        self.score_weight = nn.Parameter(torch.empty(size))

    def init_weights(self) -> None:
        nn.init.normal_(self.score_weight, std=len(self.score_weight) ** -0.5)

    def encode_memory(self, features: Features) -> AttentionMemory:
        return AttentionMemory(features.regions, self.key_proj(features.regions), features.mask)

    def forward(self, query: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        return attend(additive_scores(memory.keys, query, self.score_weight), memory.values, memory.mask)


class Dot(RegionAttention):
    """e_i = query . (W a_i) / sqrt(A), softmax, expected region.

    The "general" score of Luong et al. 2015, eq. 8: as the query is itself a product with the state, the
    paper's matrix is one of rank A. The scale is not in the paper; it is that of Vaswani et al. 2017.
    """

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.context_size = channels
        self.key_proj = nn.Linear(channels, size, bias=False)  # a bias would add the same to every score

    def init_weights(self) -> None:
        nn.init.xavier_uniform_(self.key_proj.weight)

    def encode_memory(self, features: Features) -> AttentionMemory:
        keys = self.key_proj(features.regions) * self.key_proj.out_features**-0.5
        return AttentionMemory(features.regions, keys, features.mask)

    def forward(self, query: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        return attend(torch.bmm(query, memory.keys.transpose(1, 2)), memory.values, memory.mask)


class MultiHead(RegionAttention):
    """Vaswani et al. 2017, section 3.2.2, without W^O: the next layer multiplies the context in any case.

    The attention returned is the mean over heads.
    """

    def __init__(self, channels: int, size: int, heads: int):
        super().__init__()
        self.context_size, self.heads = size, heads
        self.key_proj = nn.Linear(channels, size, bias=False)  # a bias would add the same to every score
        self.value_proj = nn.Linear(channels, size)

    def init_weights(self) -> None:
        nn.init.xavier_uniform_(self.key_proj.weight)
        nn.init.xavier_uniform_(self.value_proj.weight)

    def encode_memory(self, features: Features) -> AttentionMemory:
        keys = self.key_proj(features.regions) * (self.key_proj.out_features // self.heads) ** -0.5
        return AttentionMemory(self.value_proj(features.regions), keys, features.mask)

    def forward(self, query: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        # the heads of an image take the place of images: (B x heads, K or N, A / heads)
        query, keys, values = (self._split_heads(x) for x in (query, memory.keys, memory.values))
        mask = None if memory.mask is None else memory.mask.repeat_interleave(self.heads, 0)
        context, attention = attend(torch.bmm(query, keys.transpose(1, 2)), values, mask)
        context = context.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)
        return context, attention.unflatten(0, (-1, self.heads)).mean(1)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, R, A) -> (B x heads, R, A / heads)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)
