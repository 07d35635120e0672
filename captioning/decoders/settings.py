"""The settings that all recurrent decoders have. Knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

Size = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Sizes of a word's embedding and of the state; dropout of the embedding and of what chooses the word."""

    __pydantic_config__ = {"extra": "forbid"}
    embedding: Size = 512
    hidden: Size = 512
    dropout: Share = 0.5

    @property
    def longest(self) -> None:
        """Captions of any length are read."""
        return None
