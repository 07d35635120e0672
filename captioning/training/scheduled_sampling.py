"""Scheduled sampling: input words replaced by the model's own predictions in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captioning.models.decoders.base import Decoder
from captioning.tensors import widest_float
from captioning.text.vocabulary import Vocabulary
from captioning.training.no_grad import no_grad

_CHUNK = 1 << 12
"""Positions whose logits are computed at a time: they need no gradient, so chunks bound the memory."""


@no_grad()
def mix_in_predictions(
    decoder: Decoder,
    memory: Any,
    ids: Tensor,
    batch_sizes: Sequence[int],
    *,
    vocabulary: Vocabulary,
    probability: float,
    passes: int,
) -> Tensor:
    """Replace each id, with `probability`, by a sample from the model (Bengio et al. 2015).

    Works for every decoder through its parallel `forward`: predict a next word at every position, sample one, and
    put it in place of some of the caption's words. With one pass the predictions are conditioned on the caption's
    words (Mihaylova and Martins 2019). With more passes the mixed ids are read again and the same positions are
    sampled anew from the same random numbers (after Duckworth et al. 2019): n passes give the first n replacements
    of a caption that sampling step by step gives, as in Bengio et al.; T passes give all of them, except that
    dropout is drawn anew in every pass. Unlike there, `<pad>`, `<start>`, `<unk>` and `<end>` are never sampled.

    Args:
        ids: (B, K, T) int64 inputs. `<start>`, `<end>` and `<pad>` are never replaced.
        batch_sizes: as for `Decoder.forward`.

    Uses torch's global random generator, which the training step seeds by (seed, step, rank).
    """
    replaced = torch.rand(ids.shape, device=ids.device) < probability
    for special in (vocabulary.start, vocabulary.end, vocabulary.pad):
        replaced &= ids != special
    uniform = torch.rand(ids.shape, dtype=widest_float(ids.device), device=ids.device)
    mixed = ids
    for _ in range(passes):
        hidden = decoder(mixed, memory, batch_sizes).hidden[:, :, :-1]
        hidden = hidden[replaced[..., 1:]]  # (M, H), of the positions before a replacement
        samples = [
            _sample(decoder.logits(chunk), chunk_uniform, vocabulary)
            for chunk, chunk_uniform in zip(
                hidden.split(_CHUNK), uniform[replaced].split(_CHUNK), strict=True
            )
        ]
        mixed = ids.masked_scatter(replaced, torch.cat(samples))
    return mixed


def _sample(logits: Tensor, uniform: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Sample ids (M,) by inverting the cumulative distribution at `uniform` (M,), from 0 to 1."""
    suppressed = torch.tensor([*vocabulary.special_tokens.suppress_ids, vocabulary.end], device=logits.device)
    scores = logits.to(uniform.dtype).index_fill(1, suppressed, float("-inf"))
    cumulative = scores.softmax(1).cumsum(1)
    # the last total may be below 1 by rounding; without scaling, a suppressed last word could be drawn
    index = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    return index.clamp(max=logits.shape[1] - 1)  # in float32 the product may round up to the total
