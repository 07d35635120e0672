"""A small CNN that is trained from scratch together with the decoder, for the drawn `shapes` images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from captioning.models.encoders.base import BaseEncoderConfig, Encoder, flatten_maps, run_layers
from captioning.tensors import Features

Size = Annotated[int, Field(ge=1, le=100_000)]


@dataclass(frozen=True, kw_only=True)
class SmallCNNConfig(BaseEncoderConfig):
    """Settings of `SmallCNN`.

    Attributes:
        channels: output channels of the blocks, each of which halves the side (64 px, three blocks: 8 x 8 regions).
        frequencies: number of frequencies of the position embedding; 0: no position embedding.
        grid: average-pool the regions to grid x grid; null: keep the network's own grid.
        lr: learning rate; null: the decoder's.
        gradient_checkpointing: recompute a block's activations in the backward pass, to save memory.
    """

    kind: Literal["small"] = "small"
    channels: Annotated[tuple[Size, ...], Field(min_length=1)] = (32, 64, 128)
    frequencies: Annotated[int, Field(ge=0, le=16)] = 4
    grid: Annotated[int, Field(ge=1, le=4096)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = None
    gradient_checkpointing: bool = False

    def build(self) -> SmallCNN:
        return SmallCNN(self)


class SmallCNN(Encoder):
    """Blocks of two convolutions with BatchNorm (Ioffe and Szegedy 2015), then a position embedding.

    The position embedding is a learned projection of sines and cosines of the region's row and column.
    """

    def __init__(self, config: SmallCNNConfig):
        super().__init__()
        self.config, self.channels, self.frozen = config, config.channels[-1], False
        inputs = (3, *config.channels[:-1])
        self.blocks = nn.Sequential(*map(_block, inputs, config.channels))
        self.position_embedding = (
            nn.Linear(4 * config.frequencies, self.channels, bias=False) if config.frequencies else None
        )

    def forward(self, pixels: Tensor) -> Features:
        maps = pixels
        for block in self.blocks:
            maps = run_layers([block], maps, gradient_checkpointing=self.config.gradient_checkpointing)
        features = flatten_maps(maps, self.config.grid)  # of (B, D, height, width)
        if self.position_embedding is None:
            return features
        rows, columns = (self.config.grid,) * 2 if self.config.grid else maps.shape[-2:]
        positions = sinusoidal_positions(rows, columns, self.config.frequencies)  # (N, 4 F)
        return Features(features.regions + self.position_embedding(positions.to(features.regions)))

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


def _block(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def sinusoidal_positions(rows: int, columns: int, frequencies: int) -> Tensor:
    """(rows * columns, 4 * frequencies): sin and cos of pi/2 f y, then of pi/2 f x, for f = 1, 2, 4, ...

    y and x are the centres of the grid's cells, where the grid spans -1 .. 1.
    """
    factors = math.pi / 2 * 2.0 ** torch.arange(frequencies)
    y, x = torch.meshgrid(_cell_centres(rows), _cell_centres(columns), indexing="ij")
    angles = torch.stack([y, x], -1).reshape(rows * columns, 2, 1) * factors  # (N, 2, F)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)


def _cell_centres(cells: int) -> Tensor:
    return (2 * torch.arange(cells) + 1) / cells - 1
