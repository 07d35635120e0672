"""Greedy decoding: the most likely word at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from captioning.generation.base import BaseSearchConfig, shared_options
from captioning.generation.beam import BeamConfig
from captioning.generation.generate_loop import generate_loop
from captioning.generation.prefill import Prefill
from captioning.generation.scores import best, trim
from captioning.tensors import Hypotheses


@dataclass(frozen=True, kw_only=True)
class GreedyConfig(BaseSearchConfig):
    """Greedy decoding: one caption of each image (R = 1), scored by the sum of its log-probabilities."""

    kind: Literal["greedy"] = "greedy"

    @property
    def num_sequences(self) -> int:
        return 1

    def with_n_best(self, n_best: int) -> GreedyConfig | BeamConfig:
        """For more than one caption a beam search."""
        if n_best == 1:
            return self
        return BeamConfig(width=n_best, n_best=n_best, **shared_options(self, BeamConfig))

    def score(self, logprob: Tensor, length: int | Tensor) -> Tensor:
        return logprob

    def run(self, prefill: Prefill) -> Hypotheses:
        def most_likely(scores: Tensor, length: int) -> Tensor:
            return best(scores, scores.new_zeros(scores.shape[:2]), 1).ids

        return trim(generate_loop(prefill, self, most_likely))
