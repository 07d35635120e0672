"""What every encoder is: pixels -> regions. Knows no files, no words."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioning.tensors import Features

UNCOUNTED = "num_batches_tracked"
"""BatchNorm's counter: changes nothing in what comes out, so it is neither asked for nor fingerprinted."""


class Encoder(nn.Module, ABC):
    """Images -> a grid of regions.

    Attributes:
        channels: D of the regions.
        frozen: no parameter trains, so that features may be stored once and for all.
    """

    channels: int
    frozen: bool

    @abstractmethod
    def forward(self, pixels: Tensor) -> Features:
        """Normalised pixels (B, 3, height, width) float -> regions (B, N, D), row by row."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """The settings that shape the features, as plain values; not whence the weights, nor their training."""

    @abstractmethod
    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The parameters that train, as an optimizer takes them, each group with its learning rate.

        `lr` is for those that have none of their own. No groups where all is frozen.
        """

    def fingerprint(self) -> str:
        """Sixteen hex digits of `identity` and the weights: names, shapes, types and bytes.

        Equal for equal weights wherever they were read from and on whatever device they are.
        """
        return fingerprint_of(self.identity, self.state_dict().items())


def fingerprint_of(identity: dict[str, Any], weights: Iterable[tuple[str, Tensor]]) -> str:
    """Sixteen hex digits of a sha256 over settings and named tensors, whatever their order."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for name, tensor in sorted(weights):
        if name.endswith(UNCOUNTED):
            continue
        digest.update(f"\n{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        plain = tensor.detach().cpu().contiguous()
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def as_regions(maps: Tensor, grid: int | None) -> Features:
    """Feature maps (B, D, height, width) -> regions (B, N, D); averaged to N = grid x grid, if given."""
    if grid is not None and maps.shape[-2:] != (grid, grid):
        maps = F.adaptive_avg_pool2d(maps, grid)
    return Features(maps.flatten(2).transpose(1, 2).contiguous())
