"""The likeliest word each time, for any Decoder. Knows ids, never words or pixels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field

from captioning.decoders.base import Decoder
from captioning.decoders.packed import for_rows
from captioning.search.scores import (
    IMPOSSIBLE,
    PAD,
    best,
    check,
    check_lengths,
    emptied,
    first_tensor,
    ids_on,
    next_logp,
    trimmed,
)
from captioning.tensors import Hypotheses


@dataclass(frozen=True, kw_only=True)
class GreedyConfig:
    """At most `max_length` words, `<end>` counted; `<end>` only after `min_length` words."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    kind: Literal["greedy"] = "greedy"
    max_length: Annotated[int, Field(ge=1)] = 20
    min_length: Annotated[int, Field(ge=0)] = 1

    def __post_init__(self) -> None:
        check_lengths(self.min_length, self.max_length)

    def search(
        self, decoder: Decoder, memory: Any, *, start: int, end: int, unwanted: Collection[int]
    ) -> Hypotheses:
        return greedy(decoder, memory, self, start=start, end=end, unwanted=unwanted)


def greedy(
    decoder: Decoder, memory: Any, config: GreedyConfig, *, start: int, end: int, unwanted: Collection[int]
) -> Hypotheses:
    """One caption an image (R = 1), scored by the sum of its log-probabilities.

    See `captioning.search.search`.
    """
    check(decoder.vocabulary_size, start=start, end=end, unwanted=unwanted)
    carry = decoder.start(memory, 1)
    any_tensor = first_tensor(carry)
    decoder = for_rows(decoder, len(any_tensor))
    never, early = (ids_on(ids, any_tensor.device) for ids in (unwanted, (*unwanted, end)))
    reading = torch.full((len(any_tensor), 1), start, device=any_tensor.device)  # (B, 1)
    running = torch.ones_like(reading, dtype=torch.bool)
    words, word_logp = [], []
    for length in range(1, config.max_length + 1):
        step, carry = decoder.step(reading, carry, memory)
        logp = next_logp(decoder.logits(step.hidden), early if length <= config.min_length else never)
        top = best(logp, logp.new_zeros(reading.shape), 1)
        words.append(top.words.masked_fill(~running, PAD))
        word_logp.append(top.word_logp.masked_fill(~running, 0.0))
        running = running & (top.words != end)
        reading = top.words
        if not running.any():
            break
    ids, each = torch.stack(words, -1), torch.stack(word_logp, -1)  # (B, 1, T)
    total = each.sum(-1)
    finished = ~running
    lengths = torch.where(finished, (ids == end).int().argmax(-1) + 1, ids.shape[-1])
    found = Hypotheses(
        words=ids, lengths=lengths, logp=total, word_logp=each, scores=total, finished=finished
    )
    return trimmed(emptied(found, total == IMPOSSIBLE))
