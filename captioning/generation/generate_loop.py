"""The decoding loop of greedy search and sampling: K independent sequences of each image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captioning.generation.base import BaseSearchConfig
from captioning.generation.prefill import Prefill
from captioning.generation.processors import process_logits
from captioning.generation.scores import IMPOSSIBLE, PAD, clear_rows
from captioning.tensors import Hypotheses


def generate_loop(
    prefill: Prefill, config: BaseSearchConfig, choose: Callable[[Tensor, int], Tensor]
) -> Hypotheses:
    """K captions of each image, in the order of the sequences.

    Args:
        prefill: with K sequences per image.
        choose: (scores (B, K, V), t) -> ids (B, K), the t-th tokens of the captions, from 1.
    """
    decoder, memory, processors, state, last_ids, prefix, prefix_logprobs, _ = prefill
    first = prefix.shape[-1] + 1
    ids = last_ids.new_full((*last_ids.shape, config.max_length), PAD)  # (B, K, T)
    ids[..., : first - 1] = prefix
    logprobs = [prefix_logprobs]
    unfinished = torch.ones_like(last_ids, dtype=torch.bool)
    for length in range(first, config.max_length + 1):
        step, state = decoder.step(last_ids, state, memory)
        scores = process_logits(decoder.logits(step.hidden), ids[..., : length - 1], processors)
        last_ids = choose(scores, length)
        logprobs.append(scores.gather(-1, last_ids[..., None]).masked_fill_(~unfinished[..., None], 0.0))
        del scores  # as in `beam_search`
        ids[..., length - 1] = last_ids.masked_fill(~unfinished, PAD)
        unfinished = unfinished & (last_ids != processors.end)
        if not unfinished.any():
            break
    word_logprobs = torch.cat(logprobs, -1)
    ids = ids[..., : word_logprobs.shape[-1]]
    return as_hypotheses(ids, word_logprobs, config, finished=~unfinished, end=processors.end)


def as_hypotheses(
    ids: Tensor, word_logprobs: Tensor, config: BaseSearchConfig, *, finished: Tensor, end: int
) -> Hypotheses:
    """Captions `ids` (B, R, T) with their scores; those with log-probability minus infinity are empty."""
    logprob = word_logprobs.sum(-1)
    lengths = torch.where(finished, (ids == end).int().argmax(-1) + 1, ids.shape[-1])
    hypotheses = Hypotheses(
        ids=ids,
        lengths=lengths,
        logprob=logprob,
        word_logprobs=word_logprobs,
        scores=config.score(logprob, lengths),
        finished=finished,
    )
    return clear_rows(hypotheses, logprob == IMPOSSIBLE)
