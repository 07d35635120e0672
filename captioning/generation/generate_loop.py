"""K sequences an image, each going on by itself: what greedy search and sampling share. Knows ids only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captioning.generation.opening import Opening
from captioning.generation.processors import next_scores
from captioning.generation.scores import IMPOSSIBLE, PAD, LengthRule, emptied, length_score
from captioning.tensors import Hypotheses


def generate_loop(
    memory: Any,
    opening: Opening,
    choose: Callable[[Tensor, int], Tensor],
    *,
    max_length: int,
    length_rule: LengthRule,
    alpha: float,
) -> Hypotheses:
    """The K captions that `choose` makes word by word, in its own order.

    Args:
        opening: of K sequences an image.
        choose: (scores (B, K, V), t) -> words (B, K), the t-th of their captions (the first is 1).
    """
    decoder, limits, state, reading, begun, logp_begun = opening
    first = begun.shape[-1] + 1
    words = reading.new_full((*reading.shape, max_length), PAD)  # (B, K, T)
    words[..., : first - 1] = begun
    each = [logp_begun]
    running = torch.ones_like(reading, dtype=torch.bool)
    length = max_length
    for length in range(first, max_length + 1):
        step, state = decoder.step(reading, state, memory)
        scores = next_scores(decoder.logits(step.hidden), words[..., : length - 1], limits)
        reading = choose(scores, length)
        each.append(scores.gather(-1, reading[..., None]).masked_fill_(~running[..., None], 0.0))
        del scores  # as in `beam`
        words[..., length - 1] = reading.masked_fill(~running, PAD)
        running = running & (reading != limits.end)
        if not running.any():
            break
    words, word_logprobs = words[..., :length], torch.cat(each, -1)
    logprob = word_logprobs.sum(-1)
    lengths = torch.where(running, length, (words == limits.end).int().argmax(-1) + 1)
    found = Hypotheses(
        ids=words,
        lengths=lengths,
        logprob=logprob,
        word_logprobs=word_logprobs,
        scores=length_score(logprob, lengths, length_rule, alpha),
        finished=~running,
    )
    return emptied(found, logprob == IMPOSSIBLE)
