"""The settings that all recurrent decoders have. Knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from captioning.models.decoders.base import BaseDecoderConfig

Size = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(BaseDecoderConfig):
    """Sizes of a word's embedding and of the state; dropout of the embedding and of what chooses the word.

    forget_bias: of the forget gates (a GRU's update gates) as training begins. A cell keeps sigmoid(forget_bias) of
        itself at each word: 1 (Jozefowicz et al. 2015) keeps 73 %, 4 keeps 98 %. Where something is to be
        remembered over n words, values up to ln n are a start (Tallec and Ollivier 2018).
    """

    embedding: Size = 512
    hidden: Size = 512
    dropout: Share = 0.5
    forget_bias: float = 1.0
