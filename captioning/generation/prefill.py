"""The preparation of every search: logits processors built and the prefix read by the decoder."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from captioning.generation.base import BaseSearchConfig
from captioning.generation.processors import ConstraintIds, LogitsProcessors, build_logits_processors
from captioning.generation.scores import first_tensor, next_logprobs
from captioning.models.decoders.base import Decoder, reorder_state
from captioning.ops.cpu_kernels import prepack_module
from captioning.text.vocabulary import SpecialTokens


class Prefill(NamedTuple):
    """W equal sequences of each image, ready for the first step of a search."""

    decoder: Decoder  # with weights laid out for the steps to come
    memory: Any
    processors: LogitsProcessors
    state: Any  # (B, W, ...)
    last_ids: Tensor  # (B, W) int64, input of the next step: the last token of the prefix, or <start>
    ids: Tensor  # (B, W, P) int64: the prefix
    word_logprobs: Tensor  # (B, W, P)
    keys: Tensor  # (B,) int64, the images' keys of a random search


def prefill(
    decoder: Decoder,
    memory: Any,
    config: BaseSearchConfig,
    *,
    special: SpecialTokens,
    constraints: ConstraintIds | None = None,
    keys: Tensor | None = None,
) -> Prefill:
    """Read the prefix, once per image whatever the number of sequences. Arguments as of `search`.

    Raises:
        ValueError: see `build_logits_processors`.
    """
    width = config.num_initial
    prefix = constraints.prefix if constraints else ()
    state = decoder.init_state(memory, 1 if prefix else width)
    example = first_tensor(state)
    device, images = example.device, len(example)
    processors = build_logits_processors(
        config, decoder.vocabulary_size, device, special=special, constraints=constraints
    )
    last_ids = torch.full((images, width), special.start, device=device)
    word_logprobs = [torch.zeros(images, 1, 0, device=device)]
    for token in prefix:
        step, state = decoder.step(last_ids[:, :1], state, memory)
        logprobs = next_logprobs(decoder.logits(step.hidden), processors.suppress_ids[:0])
        word_logprobs.append(logprobs[..., token, None])
        last_ids = torch.full_like(last_ids, token)
    if prefix and width > 1:
        state = reorder_state(state, torch.zeros_like(last_ids))
    return Prefill(
        decoder=prepack_module(decoder, images * config.num_sequences),
        memory=memory,
        processors=processors,
        state=state,
        last_ids=last_ids,
        ids=torch.tensor(prefix, dtype=torch.int64, device=device).expand(images, width, -1),
        word_logprobs=torch.cat(word_logprobs, -1).expand(-1, width, -1),
        keys=torch.arange(images, device=device) if keys is None else keys,
    )
