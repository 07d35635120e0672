"""Soft attention the textbook way, with a given decoder's own weights: what the benchmarks measure against.

Same model, same numbers, computed as the well-known reproductions do: features repeated for every caption and
every beam, the region projection inside the attention and so computed at each step, scores for padding too,
beam search one image at a time. Nothing but the benchmarks and their tests use it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from captioning.models.decoders.region_attention import Additive
from captioning.models.decoders.soft_attention_lstm import SoftAttentionLSTM


def step(
    model: SoftAttentionLSTM, features: Tensor, words: Tensor, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One word for each of R rows: features (R, N, D), words (R,), state 2 x (R, H) -> logits (R, V), state."""
    hidden, cell = state
    look = model.attention
    assert isinstance(look, Additive)
    to_gates, to_query, to_beta = model.hidden_proj.weight.split(
        [4 * model.config.hidden, model.config.attention_size, 1]
    )
    energy = torch.tanh(look.key_proj(features) + F.linear(hidden, to_query)[:, None])  # (R, N, A)
    energy = energy @ look.score_weight  # (R, N)
    alpha = torch.softmax(energy, 1)
    context = (alpha[:, :, None] * features).sum(1)  # (R, D)
    context = torch.sigmoid(F.linear(hidden, to_beta) + model.beta_bias) * context
    embedded = model.dropout(model.embedding(words))
    gates = model.input_proj(embedded) + F.linear(hidden, to_gates) + model.context_proj(context)
    entered, forget, candidate, out = gates.chunk(4, 1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(entered) * torch.tanh(candidate)
    hidden = torch.sigmoid(out) * torch.tanh(cell)
    deep = torch.tanh(model.deep_output(torch.cat([hidden, context, embedded], 1)))
    deep = model.dropout(deep)
    # torch's product, where `model.vocab_projection` has a faster one of its own
    return F.linear(deep, model.vocab_projection.weight, model.vocab_projection.bias), (hidden, cell)


def first(model: SoftAttentionLSTM, features: Tensor) -> tuple[Tensor, Tensor]:
    """The state (R, H), (R, H) before the first word, from the mean of features (R, N, D)."""
    mean = features.mean(1)
    hidden, cell = (torch.tanh(first(mean)) for first in model.state_init)
    return hidden, cell


def loss(model: SoftAttentionLSTM, features: Tensor, words: Tensor, *, pad: int) -> Tensor:
    """Mean cross-entropy per token of `words` (B, K, T + 1) for features (B, N, D)."""
    _, width, length = words.shape
    rows = features.repeat_interleave(width, 0)  # (B x K, N, D)
    flat = words.flatten(0, 1)
    state = first(model, rows)
    scores = torch.zeros(len(flat), length - 1, model.vocabulary_size)
    for t in range(length - 1):
        scores[:, t], state = step(model, rows, flat[:, t], state)
    return F.cross_entropy(scores.flatten(0, 1), flat[:, 1:].flatten(), ignore_index=pad)


@torch.inference_mode()
def beam(
    model: SoftAttentionLSTM, features: Tensor, *, width: int, length: int, start: int, banned: Tensor
) -> Tensor:
    """The likeliest `length` words found for each image: (B, length). No caption may end before."""
    return torch.stack([_beam_one(model, each, width, length, start, banned) for each in features])


def _beam_one(
    model: SoftAttentionLSTM, features: Tensor, width: int, length: int, start: int, banned: Tensor
) -> Tensor:
    rows = features[None].expand(width, -1, -1).contiguous()  # (K, N, D)
    state = first(model, rows)
    sequences = torch.full((width, 1), start)
    total = torch.zeros(width, 1)
    for t in range(length):
        logits, state = step(model, rows, sequences[:, -1], state)
        logprob = F.log_softmax(logits, 1)
        logprob[:, banned] = float("-inf")
        total_with = (total + logprob)[:1] if t == 0 else total + logprob
        total, index = total_with.flatten().topk(width)
        total = total[:, None]
        parents, words = index // logprob.shape[1], index % logprob.shape[1]
        sequences = torch.cat([sequences[parents], words[:, None]], 1)
        state = (state[0][parents], state[1][parents])
    return sequences[0, 1:]
