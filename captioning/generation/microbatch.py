"""One search over many images as several over fewer of them. Knows no kind of search, no words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from captioning.generation.scores import PAD
from captioning.models.decoders.base import Decoder, tensors_of
from captioning.ops.cpu_kernels import prepack_module
from captioning.tensors import Hypotheses

ROWS = 128
"""Sequences that a CPU takes a step with at a time, where they carry all their words: more of them make its
products a little faster, as weights are read once for all, but the words' memory grows with them."""

Find = Callable[[Decoder, Any, Tensor | None], Hypotheses]
"""A search with a decoder over a memory, and its images' keys."""


def search_in_microbatches(
    find: Find, decoder: Decoder, memory: Any, *, live: int, keys: Tensor | None
) -> Hypotheses:
    """What `find` finds for all images of `memory`; on a CPU for about `ROWS` sequences at a time.

    That is for decoders whose carry grows with each word: the cache of a Transformer with a beam of five would
    otherwise be as large as its weights. A part is done when its own captions are.

    Args:
        live: sequences an image.
        keys: see `search`.
    """
    some = next(tensors_of(memory))
    images, device = len(some), some.device
    if not decoder.parallel or device.type != "cpu" or images * live <= ROWS:
        return find(decoder, memory, keys)
    size = math.ceil(images / math.ceil(images * live / ROWS))
    decoder = prepack_module(decoder, size * live)  # here, or each part would lay them out anew
    if keys is None:
        keys = torch.arange(images, device=device)
    found = [
        find(decoder, _part(memory, first, size), keys[first : first + size])
        for first in range(0, images, size)
    ]
    longest = max(each.ids.shape[-1] for each in found)
    padded = [
        each._replace(
            ids=F.pad(each.ids, (0, longest - each.ids.shape[-1]), value=PAD),
            word_logprobs=F.pad(each.word_logprobs, (0, longest - each.ids.shape[-1])),
        )
        for each in found
    ]
    return Hypotheses(*(torch.cat(parts) for parts in zip(*padded, strict=True)))


def _part(memory: Any, first: int, size: int) -> Any:
    """A memory of some of the images; views, nothing is copied."""
    if memory is None:
        return None
    if isinstance(memory, Tensor):
        return memory[first : first + size]
    parts = [_part(part, first, size) for part in memory]
    return type(memory)(*parts) if hasattr(memory, "_fields") else tuple(parts)
