"""A search over many images as several searches over a few images each."""

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
"""Sequences that a CPU processes at a time if their state grows with the length. With more, matrix products are
a little faster, as weights are read once for all of them, but memory grows."""

Search = Callable[[Decoder, Any, Tensor | None], Hypotheses]
"""A search with a decoder over a memory, and its images' keys."""


def search_in_microbatches(
    search: Search, decoder: Decoder, memory: Any, *, num_sequences: int, keys: Tensor | None
) -> Hypotheses:
    """The results of `search`; on a CPU for about `ROWS` sequences at a time.

    Only for decoders whose state grows with the length: the key/value cache of a Transformer with a beam of
    five would otherwise be as large as its weights. Each microbatch stops when its own captions are finished.

    Args:
        num_sequences: per image.
        keys: see `captioning.generation.search`.
    """
    example = next(tensors_of(memory))
    images, device = len(example), example.device
    if not decoder.parallel or device.type != "cpu" or images * num_sequences <= ROWS:
        return search(decoder, memory, keys)
    size = math.ceil(images / math.ceil(images * num_sequences / ROWS))
    decoder = prepack_module(decoder, size * num_sequences)  # once, not in every microbatch
    if keys is None:
        keys = torch.arange(images, device=device)
    results = [
        search(decoder, _slice(memory, first, size), keys[first : first + size])
        for first in range(0, images, size)
    ]
    longest = max(result.ids.shape[-1] for result in results)
    padded = [
        result._replace(
            ids=F.pad(result.ids, (0, longest - result.ids.shape[-1]), value=PAD),
            word_logprobs=F.pad(result.word_logprobs, (0, longest - result.ids.shape[-1])),
        )
        for result in results
    ]
    return Hypotheses(*(torch.cat(fields) for fields in zip(*padded, strict=True)))


def _slice(memory: Any, first: int, size: int) -> Any:
    """The memory of `size` images from `first` on, as views."""
    if memory is None:
        return None
    if isinstance(memory, Tensor):
        return memory[first : first + size]
    fields = [_slice(field, first, size) for field in memory]
    return type(memory)(*fields) if hasattr(memory, "_fields") else tuple(fields)
