"""Captions drawn at random, n an image, for any Decoder. Knows ids, never words or pixels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from captioning.generation import noise
from captioning.generation.drawing import SamplingConfig, draw, filter_logits
from captioning.generation.generate_loop import generate_loop
from captioning.generation.opening import prefill
from captioning.generation.processors import RuleIds
from captioning.generation.scores import ranked, trimmed
from captioning.models.decoders.base import Decoder
from captioning.tensors import Hypotheses


@dataclass(frozen=True, kw_only=True)
class SampleConfig(SamplingConfig):
    """`samples` independent captions an image."""

    kind: Literal["sample"] = "sample"
    samples: Annotated[int, Field(ge=1)] = 1

    @property
    def live(self) -> int:
        """Sequences an image, at most words."""
        return self.samples

    def finding(self, count: int) -> SampleConfig:
        return replace(self, samples=count)

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
        return sample(
            decoder, memory, self, start=start, end=end, suppress_ids=suppress_ids, ids=ids, keys=keys
        )


def sample(
    decoder: Decoder,
    memory: Any,
    config: SampleConfig,
    *,
    start: int,
    end: int,
    suppress_ids: Collection[int],
    ids: RuleIds | None = None,
    keys: Tensor | None = None,
) -> Hypotheses:
    """`samples` captions an image, which may be equal; ranked by score like those of any search.

    An image's j-th sample depends on the seed, the image's key and j: more samples leave the first as they
    were. See `captioning.generation.search`.
    """
    width = config.samples
    opening = prefill(
        decoder,
        memory,
        config,
        width=width,
        live=width,
        start=start,
        end=end,
        suppress_ids=suppress_ids,
        ids=ids,
    )
    if keys is None:
        keys = torch.arange(len(opening.reading), device=opening.reading.device)
    state = noise.streams(config.seed, keys, width)

    def drawn(scores: Tensor, length: int) -> Tensor:
        return draw(filter_logits(scores, config), noise.mixed(state, length))

    found = generate_loop(
        memory,
        opening,
        drawn,
        max_length=config.max_length,
        length_rule=config.length_rule,
        alpha=config.alpha,
    )
    return trimmed(ranked(found))
