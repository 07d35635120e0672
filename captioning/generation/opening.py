"""How every search begins: its rules made ready, the prefix read. Knows ids and any Decoder, no kind of search."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captioning.generation.processors import Limits, RuleIds, Rules, limits
from captioning.generation.scores import first_tensor, next_logprobs
from captioning.models.decoders.base import Decoder, reorder_state
from captioning.ops.cpu_kernels import prepack_module


class Opening(NamedTuple):
    """W equal sequences an image, about to read the last word of the prefix (or `<start>`)."""

    decoder: Decoder  # for the steps to come
    limits: Limits
    state: Any  # (B, W, ...)
    reading: Tensor  # (B, W) int64
    words: Tensor  # (B, W, P) int64: the prefix
    word_logprobs: Tensor  # (B, W, P)


def prefill(
    decoder: Decoder,
    memory: Any,
    config: Rules,
    *,
    width: int,
    live: int,
    start: int,
    end: int,
    suppress_ids: Collection[int],
    ids: RuleIds | None,
) -> Opening:
    """The prefix is read once an image, whatever the width.

    Args:
        width: sequences an image at the first word.
        live: sequences an image at most words, for which the decoder's weights are laid out.

    Raises:
        ValueError: see `rules.limits`.
    """
    prefix = ids.prefix if ids else ()
    state = decoder.init_state(memory, 1 if prefix else width)
    any_tensor = first_tensor(state)
    device, images = any_tensor.device, len(any_tensor)
    rules = limits(
        config, decoder.vocabulary_size, device, start=start, end=end, suppress_ids=suppress_ids, ids=ids
    )
    reading = torch.full((images, width), start, device=device)
    word_logprobs = []
    none = rules.never[:0]
    for word in prefix:
        step, state = decoder.step(reading[:, :1], state, memory)
        word_logprobs.append(next_logprobs(decoder.logits(step.hidden), none)[..., word])
        reading = torch.full_like(reading, word)
    if prefix and width > 1:
        state = reorder_state(state, torch.zeros_like(reading))
    words = torch.tensor(prefix, dtype=torch.int64, device=device).expand(images, width, -1)
    each = torch.stack(word_logprobs, -1) if word_logprobs else torch.zeros(images, 1, 0, device=device)
    return Opening(
        prepack_module(decoder, images * live), rules, state, reading, words, each.expand(-1, width, -1)
    )
