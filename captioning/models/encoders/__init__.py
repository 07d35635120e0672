"""Encoders. A new one is a file in this folder, and its config's name in the union `EncoderConfig`."""

from __future__ import annotations

from typing import Annotated

from captioning.models.encoders.base import BaseEncoderConfig, Encoder, for_inference
from captioning.models.encoders.detector import DetectorConfig
from captioning.models.encoders.region_files import RegionsConfig
from captioning.models.encoders.small_cnn import SmallCNNConfig
from captioning.models.encoders.timm_model import TimmConfig
from captioning.models.encoders.torchvision_cnn import TorchvisionConfig
from captioning.utils.validation import ByKind

EncoderConfig = Annotated[
    TorchvisionConfig | TimmConfig | DetectorConfig | SmallCNNConfig | RegionsConfig,
    ByKind(BaseEncoderConfig),
]


def build(config: BaseEncoderConfig) -> Encoder:
    """The encoder that `config` describes, with its initial weights."""
    return config.build()


__all__ = [
    "BaseEncoderConfig",
    "DetectorConfig",
    "Encoder",
    "EncoderConfig",
    "RegionsConfig",
    "SmallCNNConfig",
    "TimmConfig",
    "TorchvisionConfig",
    "build",
    "for_inference",
]
