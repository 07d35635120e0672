"""How recurrent decoders see regions: projected, as a mean, and through attention. Knows no words."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioning.decoders.attention import additive_energy, attend
from captioning.tensors import Features


class Seen(NamedTuple):
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


class Additive(nn.Module):
    """e_i = w . tanh(W a_i + b + query), softmax, expected region (Bahdanau et al. 2015; Xu et al. 2015, eq. 4)."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.keys = nn.Linear(channels, size)
        self.energy = nn.Parameter(torch.empty(size))

    def initialise(self) -> None:
        nn.init.normal_(self.energy, std=len(self.energy) ** -0.5)

    def remember(self, features: Features) -> Seen:
        return Seen(values=features.regions, keys=self.keys(features.regions), valid=features.valid)

    def forward(self, query: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """`query` (B, K, A) -> context (B, K, D) and attention (B, K, N)."""
        return attend(additive_energy(seen.keys, query, self.energy), seen.values, seen.valid)
