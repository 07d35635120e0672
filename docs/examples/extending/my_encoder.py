"""An encoder: linear embeddings of square patches, as in a Vision Transformer, trained with the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from captioning.models.encoders import BaseEncoderConfig, Encoder
from captioning.tensors import Features


@dataclass(frozen=True, kw_only=True)
class PatchesConfig(BaseEncoderConfig):
    """`patch`: side of a patch in pixels; `channels`: size D of a region."""

    kind: Literal["my_encoder:PatchesConfig"] = "my_encoder:PatchesConfig"
    patch: int = 8
    channels: int = 64

    def build(self) -> Patches:
        return Patches(self)


class Patches(Encoder):
    """Normalised pixels (B, 3, height, width) -> one region per patch, (B, N, D)."""

    def __init__(self, config: PatchesConfig):
        super().__init__()
        self.config, self.channels = config, config.channels
        self.frozen = False  # True: features are computed once and kept in the feature store
        self.embed = nn.Conv2d(3, config.channels, config.patch, stride=config.patch)

    def forward(self, pixels: Tensor) -> Features:
        maps = self.embed(pixels).relu()  # (B, D, rows, columns)
        return Features(maps.flatten(2).transpose(1, 2).contiguous())

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that the features depend on; part of the feature store's fingerprint."""
        return {"kind": self.config.kind, "patch": self.config.patch, "channels": self.channels}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "lr": lr}]
