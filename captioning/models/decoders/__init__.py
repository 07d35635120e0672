"""Decoders. A new one is a file in this folder, and its config's name in the union `DecoderConfig`."""

from __future__ import annotations

from typing import Annotated

from captioning.models.decoders.adaptive_attention import AdaptiveAttentionConfig
from captioning.models.decoders.aoa import AoAConfig
from captioning.models.decoders.att2in import Att2inConfig
from captioning.models.decoders.base import BaseDecoderConfig, Decoder, reorder_state, unroll
from captioning.models.decoders.hard_attention_lstm import HardAttentionLSTMConfig
from captioning.models.decoders.meshed_memory import MeshedMemoryConfig
from captioning.models.decoders.show_tell import ShowTellConfig
from captioning.models.decoders.soft_attention_lstm import SoftAttentionLSTMConfig
from captioning.models.decoders.transformer import TransformerConfig
from captioning.models.decoders.up_down import UpDownConfig
from captioning.utils.validation import ByKind

DecoderConfig = Annotated[
    ShowTellConfig
    | SoftAttentionLSTMConfig
    | HardAttentionLSTMConfig
    | AdaptiveAttentionConfig
    | Att2inConfig
    | UpDownConfig
    | AoAConfig
    | TransformerConfig
    | MeshedMemoryConfig,
    ByKind(BaseDecoderConfig),
]


def build(config: BaseDecoderConfig, *, channels: int, vocabulary_size: int) -> Decoder:
    """The decoder that `config` describes, for regions of D = `channels` and V = `vocabulary_size`."""
    return config.build(channels=channels, vocabulary_size=vocabulary_size)


__all__ = [
    "AdaptiveAttentionConfig",
    "AoAConfig",
    "Att2inConfig",
    "BaseDecoderConfig",
    "Decoder",
    "DecoderConfig",
    "HardAttentionLSTMConfig",
    "MeshedMemoryConfig",
    "ShowTellConfig",
    "SoftAttentionLSTMConfig",
    "TransformerConfig",
    "UpDownConfig",
    "build",
    "reorder_state",
    "unroll",
]
