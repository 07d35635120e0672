"""The likeliest word each time, for any Decoder. Knows ids, never words or pixels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from captioning.generation.beam import BeamConfig
from captioning.generation.generate_loop import generate_loop
from captioning.generation.opening import prefill
from captioning.generation.processors import RuleIds, Rules, settings
from captioning.generation.scores import best, trimmed
from captioning.models.decoders.base import Decoder
from captioning.tensors import Hypotheses


@dataclass(frozen=True, kw_only=True)
class GreedyConfig(Rules):
    """One caption an image: nothing but the rules to choose."""

    kind: Literal["greedy"] = "greedy"

    @property
    def live(self) -> int:
        """Sequences an image, at most words."""
        return 1

    def finding(self, count: int) -> GreedyConfig | BeamConfig:
        """A search for `count` captions an image: a beam search where that is more than one."""
        return self if count == 1 else BeamConfig(width=count, n_best=count, **settings(self, BeamConfig))

    def search(
        self,
        decoder: Decoder,
        memory: Any,
        *,
        start: int,
        end: int,
        suppress_ids: Collection[int],
        ids: RuleIds | None = None,
        keys: Tensor | None = None,
    ) -> Hypotheses:
        return greedy(decoder, memory, self, start=start, end=end, suppress_ids=suppress_ids, ids=ids)


def greedy(
    decoder: Decoder,
    memory: Any,
    config: GreedyConfig,
    *,
    start: int,
    end: int,
    suppress_ids: Collection[int],
    ids: RuleIds | None = None,
) -> Hypotheses:
    """One caption an image (R = 1), scored by the sum of its log-probabilities.

    See `captioning.generation.search`.
    """
    opening = prefill(
        decoder, memory, config, width=1, live=1, start=start, end=end, suppress_ids=suppress_ids, ids=ids
    )

    def likeliest(scores: Tensor, length: int) -> Tensor:
        return best(scores, scores.new_zeros(scores.shape[:2]), 1).ids

    return trimmed(
        generate_loop(memory, opening, likeliest, max_length=config.max_length, length_rule="sum", alpha=0.0)
    )
