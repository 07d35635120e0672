"""A small CNN to be trained from scratch, for drawn scenes. Knows no words, no image files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from captioning.models.encoders.base import Encoder, as_regions, run_layers
from captioning.tensors import Features

Size = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class SmallCNNConfig:
    """channels: of the blocks, each of which halves the side (64 px and three blocks: 8 x 8 regions).
    frequencies: of the sines that tell a region its place; 0: regions don't know where they are.
    grid: regions are averaged to grid x grid; None keeps the network's own.
    lr: learning rate; None: the decoder's.
    recompute: what is inside a block is computed again in the backward pass, to save memory.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    kind: Literal["small"] = "small"
    channels: Annotated[tuple[Size, ...], Field(min_length=1)] = (32, 64, 128)
    frequencies: Annotated[int, Field(ge=0, le=16)] = 4
    grid: Size | None = None
    lr: Annotated[float, Field(gt=0)] | None = None
    recompute: bool = False

    def build(self) -> SmallCNN:
        return SmallCNN(self)


class SmallCNN(Encoder):
    """Blocks of two convolutions with BatchNorm (Ioffe and Szegedy 2015).

    The regions get their place added: a learned product of sines and cosines of row and column.
    """

    def __init__(self, config: SmallCNNConfig):
        super().__init__()
        self.config, self.channels, self.frozen = config, config.channels[-1], False
        before = (3, *config.channels[:-1])
        self.blocks = nn.Sequential(*(_block(a, b) for a, b in zip(before, config.channels, strict=True)))
        self.place = (
            nn.Linear(4 * config.frequencies, self.channels, bias=False) if config.frequencies else None
        )

    def forward(self, pixels: Tensor) -> Features:
        """Normalised pixels (B, 3, height, width) float -> regions (B, N, D)."""
        maps = pixels
        for block in self.blocks:
            maps = run_layers(
                [block], maps, recompute=self.config.recompute
            )  # (B, D, height, width) in the end
        features = as_regions(maps, self.config.grid)
        if self.place is None:
            return features
        rows, columns = (self.config.grid,) * 2 if self.config.grid else maps.shape[-2:]
        places = sines(rows, columns, self.config.frequencies).to(features.regions)  # (N, 4 F)
        return Features(features.regions + self.place(places))

    @property
    def identity(self) -> dict[str, Any]:
        config = self.config
        return {
            "kind": config.kind,
            "channels": list(config.channels),
            "frequencies": config.frequencies,
            "grid": config.grid,
        }

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "lr": self.config.lr or lr}]


def _block(before: int, after: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


def sines(rows: int, columns: int, frequencies: int) -> Tensor:
    """(rows * columns, 4 * frequencies): sin, cos of pi/2 f y, then of x; y, x in -1 .. 1, f = 1, 2, 4 ..."""
    powers = math.pi / 2 * 2.0 ** torch.arange(frequencies)
    y, x = torch.meshgrid(_centres(rows), _centres(columns), indexing="ij")
    angles = torch.stack([y, x], -1).reshape(rows * columns, 2, 1) * powers  # (N, 2, F)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)


def _centres(cells: int) -> Tensor:
    """Where the centres of `cells` cells lie when their outer edges are at -1 and 1."""
    return (2 * torch.arange(cells) + 1) / cells - 1
