"""The encoders there are. Adding one is a file, and its name in the union here."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from captioning.models.encoders.base import Encoder, for_inference
from captioning.models.encoders.region_files import RegionsConfig
from captioning.models.encoders.small_cnn import SmallCNNConfig
from captioning.models.encoders.torchvision_cnn import TorchvisionConfig

EncoderConfig = Annotated[TorchvisionConfig | SmallCNNConfig | RegionsConfig, Field(discriminator="kind")]


def build(config: EncoderConfig) -> Encoder:
    """The encoder that `config` describes, its weights read from where the config says."""
    return config.build()


def without_weights(config: EncoderConfig) -> EncoderConfig:
    """The same encoder, to be built without reading weights: a model folder brings its own."""
    return replace(config, weights="none") if isinstance(config, TorchvisionConfig) else config


__all__ = [
    "Encoder",
    "EncoderConfig",
    "RegionsConfig",
    "SmallCNNConfig",
    "TorchvisionConfig",
    "build",
    "for_inference",
    "without_weights",
]
