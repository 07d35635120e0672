"""How every search begins: its rules made ready, the prefix read. Knows ids and any Decoder, no kind of search."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captioning.generation.processors import Limits, RuleIds, Rules, limits
from captioning.generation.scores import first_tensor, next_logp
from captioning.models.decoders.base import Decoder, select
from captioning.ops.packed_linear import for_rows


class Opening(NamedTuple):
    """W equal sequences an image, about to read the last word of the prefix (or `<start>`)."""

    decoder: Decoder  # for the steps to come
    limits: Limits
    carry: Any  # (B, W, ...)
    reading: Tensor  # (B, W) int64
    words: Tensor  # (B, W, P) int64: the prefix
    word_logp: Tensor  # (B, W, P)


def begin(
    decoder: Decoder,
    memory: Any,
    config: Rules,
    *,
    width: int,
    live: int,
    start: int,
    end: int,
    unwanted: Collection[int],
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
    carry = decoder.start(memory, 1 if prefix else width)
    any_tensor = first_tensor(carry)
    device, images = any_tensor.device, len(any_tensor)
    rules = limits(config, decoder.vocabulary_size, device, start=start, end=end, unwanted=unwanted, ids=ids)
    reading = torch.full((images, width), start, device=device)
    word_logp = []
    none = rules.never[:0]
    for word in prefix:
        step, carry = decoder.step(reading[:, :1], carry, memory)
        word_logp.append(next_logp(decoder.logits(step.hidden), none)[..., word])
        reading = torch.full_like(reading, word)
    if prefix and width > 1:
        carry = select(carry, torch.zeros_like(reading))
    words = torch.tensor(prefix, dtype=torch.int64, device=device).expand(images, width, -1)
    each = torch.stack(word_logp, -1) if word_logp else torch.zeros(images, 1, 0, device=device)
    return Opening(for_rows(decoder, images * live), rules, carry, reading, words, each.expand(-1, width, -1))
