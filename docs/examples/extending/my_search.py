"""A search: greedy decoding with a repetition penalty (Keskar et al. 2019, CTRL, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from captioning.errors import UserError
from captioning.generation import BaseSearchConfig
from captioning.generation.generate_loop import generate_loop
from captioning.generation.prefill import Prefill
from captioning.tensors import Hypotheses


@dataclass(frozen=True, kw_only=True)
class PenaltyConfig(BaseSearchConfig):
    """`penalty`: factor on the log-probability of words that the caption already contains; 1: none.

    Lengths, prefix, forced and banned words come with the base class and need no code here.
    """

    kind: Literal["my_search:PenaltyConfig"] = "my_search:PenaltyConfig"
    penalty: Annotated[float, Field(ge=1)] = 1.2

    @property
    def num_sequences(self) -> int:
        """Sequences of an image that the decoder processes at once."""
        return 1

    def with_n_best(self, n_best: int) -> PenaltyConfig:
        if n_best > 1:
            raise UserError(f"search.kind {self.kind}: returns one caption per image, asked for {n_best}")
        return self

    def score(self, logprob: Tensor, length: int | Tensor) -> Tensor:
        """The number by which captions of different lengths are ranked, and which is reported."""
        return logprob

    def run(self, prefill: Prefill) -> Hypotheses:
        previous = [prefill.ids]  # (B, 1, t) in total

        def choose(scores: Tensor, length: int) -> Tensor:
            """Log-probabilities (B, 1, V) -> ids (B, 1) of the next word."""
            ids = torch.cat(previous, -1)
            penalised = scores.scatter(-1, ids, scores.gather(-1, ids) * self.penalty)
            best = penalised.argmax(-1)
            previous.append(best[..., None])
            return best

        return generate_loop(prefill, self, choose)
