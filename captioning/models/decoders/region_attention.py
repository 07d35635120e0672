"""How recurrent decoders see regions: projected, as a mean, and through attention. Knows no words."""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioning.ops.attention import additive_scores, attend
from captioning.tensors import Features


class AttentionMemory(NamedTuple):
    """Regions as an attention needs them, once per image."""

    values: Tensor  # (B, N, D)
    keys: Tensor  # (B, N, A)
    valid: Tensor | None  # (B, N)


def projection(channels: int, size: int | None, *, dropout: float) -> nn.Module:
    """Regions (B, N, channels) -> (B, N, size), normalised; as they are where `size` is None."""
    if size is None:
        return nn.Identity()
    return nn.Sequential(nn.Linear(channels, size), nn.LayerNorm(size), nn.ReLU(), nn.Dropout(dropout))


def mean_region(features: Features) -> Tensor:
    """The mean over the regions that there are: (B, D)."""
    if features.valid is None:
        return features.regions.mean(1)
    weight = features.valid.to(features.regions.dtype)
    return torch.einsum("bnd,bn->bd", features.regions, weight) / weight.sum(1, keepdim=True)


class RegionAttention(nn.Module, abc.ABC):
    """An attention, by what the state asks for."""

    context: int  # channels of what it gives

    @abc.abstractmethod
    def encode_memory(self, features: Features) -> AttentionMemory:
        """What is computed once per image."""

    @abc.abstractmethod
    def forward(self, query: Tensor, seen: AttentionMemory) -> tuple[Tensor, Tensor]:
        """`query` (B, K, A) -> context (B, K, `context`) and attention (B, K, N), whose rows sum to 1."""

    @abc.abstractmethod
    def initialise(self) -> None:
        """Draw the weights as they are best at the start."""


class Additive(RegionAttention):
    """e_i = w . tanh(W a_i + b + query), softmax, expected region (Bahdanau et al. 2015; Xu et al. 2015, eq. 4)."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.context = channels
        self.keys = nn.Linear(channels, size)
        self.energy = nn.Parameter(torch.empty(size))

    def initialise(self) -> None:
        nn.init.normal_(self.energy, std=len(self.energy) ** -0.5)

    def encode_memory(self, features: Features) -> AttentionMemory:
        return AttentionMemory(
            values=features.regions, keys=self.keys(features.regions), valid=features.valid
        )

    def forward(self, query: Tensor, seen: AttentionMemory) -> tuple[Tensor, Tensor]:
        return attend(additive_scores(seen.keys, query, self.energy), seen.values, seen.valid)


class Dot(RegionAttention):
    """e_i = query . (W a_i) / sqrt(A), softmax, expected region.

    The "general" score of Luong et al. 2015, eq. 8: as the query is itself a product with the state, the
    paper's matrix is one of rank A. The scale, which the paper has not, is that of Vaswani et al. 2017.
    """

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.context = channels
        self.keys = nn.Linear(channels, size, bias=False)  # a bias would add the same to every region

    def initialise(self) -> None:
        nn.init.xavier_uniform_(self.keys.weight)

    def encode_memory(self, features: Features) -> AttentionMemory:
        keys = self.keys(features.regions) * self.keys.out_features**-0.5
        return AttentionMemory(values=features.regions, keys=keys, valid=features.valid)

    def forward(self, query: Tensor, seen: AttentionMemory) -> tuple[Tensor, Tensor]:
        return attend(torch.bmm(query, seen.keys.transpose(1, 2)), seen.values, seen.valid)


class MultiHead(RegionAttention):
    """Vaswani et al. 2017, section 3.2.2, without W^O: what uses the context multiplies it in any case.

    The attention that is shown is the mean over heads.
    """

    def __init__(self, channels: int, size: int, heads: int):
        super().__init__()
        self.context, self.heads = size, heads
        self.keys = nn.Linear(channels, size, bias=False)  # a bias would add the same to every region
        self.values = nn.Linear(channels, size)

    def initialise(self) -> None:
        nn.init.xavier_uniform_(self.keys.weight)
        nn.init.xavier_uniform_(self.values.weight)

    def encode_memory(self, features: Features) -> AttentionMemory:
        keys = self.keys(features.regions) * (self.keys.out_features // self.heads) ** -0.5
        return AttentionMemory(values=self.values(features.regions), keys=keys, valid=features.valid)

    def forward(self, query: Tensor, seen: AttentionMemory) -> tuple[Tensor, Tensor]:
        # the heads of an image lie as images do: (B x heads, K or N, A / heads)
        query, keys, values = (_by_heads(part, self.heads) for part in (query, seen.keys, seen.values))
        valid = None if seen.valid is None else seen.valid.repeat_interleave(self.heads, 0)
        context, attention = attend(torch.bmm(query, keys.transpose(1, 2)), values, valid)
        context = context.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)
        return context, attention.unflatten(0, (-1, self.heads)).mean(1)


def _by_heads(each: Tensor, heads: int) -> Tensor:
    """(B, R, A) -> (B x heads, R, A / heads)"""
    return each.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)
