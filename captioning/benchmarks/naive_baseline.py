"""A naive soft attention LSTM with the weights of a given decoder: the baseline of the benchmarks.

It computes the same numbers as well-known reproductions do: features repeated for every caption and beam, the region
projection inside the attention and thus at every step, logits for padding too, beam search one image at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from captioning.models.decoders.region_attention import Additive
from captioning.models.decoders.soft_attention_lstm import SoftAttentionLSTM


def step(
    model: SoftAttentionLSTM, features: Tensor, ids: Tensor, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One word for each of R rows: features (R, N, D), ids (R,), state 2 x (R, H) -> logits (R, V), state."""
    hidden, cell = state
    attention = model.attention
    assert isinstance(attention, Additive)
    to_gates, to_query, to_beta = model.hidden_proj.weight.split(
        [4 * model.config.hidden, model.config.attention_size, 1]
    )
    scores = torch.tanh(attention.key_proj(features) + F.linear(hidden, to_query)[:, None])  # (R, N, A)
    scores = scores @ attention.score_weight  # (R, N)
    alpha = torch.softmax(scores, 1)
    context = (alpha[:, :, None] * features).sum(1)  # (R, D)
    context = torch.sigmoid(F.linear(hidden, to_beta) + model.beta_bias) * context
    embedded = model.dropout(model.embedding(ids))
    gates = model.input_proj(embedded) + F.linear(hidden, to_gates) + model.context_proj(context)
    input_gate, forget_gate, candidate, output_gate = gates.chunk(4, 1)
    cell = torch.sigmoid(forget_gate) * cell + torch.sigmoid(input_gate) * torch.tanh(candidate)
    hidden = torch.sigmoid(output_gate) * torch.tanh(cell)
    deep = torch.tanh(model.deep_output(torch.cat([hidden, context, embedded], 1)))
    deep = model.dropout(deep)
    # torch's product: `model.vocab_projection` has a faster one of its own
    return F.linear(deep, model.vocab_projection.weight, model.vocab_projection.bias), (hidden, cell)


def init_state(model: SoftAttentionLSTM, features: Tensor) -> tuple[Tensor, Tensor]:
    """The state (R, H), (R, H) before the first word, from the mean of features (R, N, D)."""
    mean = features.mean(1)
    hidden, cell = (torch.tanh(first(mean)) for first in model.state_init)
    return hidden, cell


def loss(model: SoftAttentionLSTM, features: Tensor, ids: Tensor, *, pad: int) -> Tensor:
    """Mean cross-entropy per token of ids (B, K, T + 1) for features (B, N, D)."""
    _, width, length = ids.shape
    rows = features.repeat_interleave(width, 0)  # (B x K, N, D)
    flat = ids.flatten(0, 1)
    state = init_state(model, rows)
    logits = torch.zeros(len(flat), length - 1, model.vocabulary_size)
    for t in range(length - 1):
        logits[:, t], state = step(model, rows, flat[:, t], state)
    return F.cross_entropy(logits.flatten(0, 1), flat[:, 1:].flatten(), ignore_index=pad)


@torch.inference_mode()
def beam(
    model: SoftAttentionLSTM, features: Tensor, *, width: int, length: int, start: int, banned: Tensor
) -> Tensor:
    """Ids (B, length) of the best caption of each image. No caption may end earlier."""
    return torch.stack([_beam_one(model, image, width, length, start, banned) for image in features])


def _beam_one(
    model: SoftAttentionLSTM, features: Tensor, width: int, length: int, start: int, banned: Tensor
) -> Tensor:
    rows = features[None].expand(width, -1, -1).contiguous()  # (K, N, D)
    state = init_state(model, rows)
    sequences = torch.full((width, 1), start)
    total = torch.zeros(width, 1)
    for t in range(length):
        logits, state = step(model, rows, sequences[:, -1], state)
        logprob = F.log_softmax(logits, 1)
        logprob[:, banned] = float("-inf")
        candidates = (total + logprob)[:1] if t == 0 else total + logprob  # K equal rows at the start
        total, index = candidates.flatten().topk(width)
        total = total[:, None]
        parents, ids = index // logprob.shape[1], index % logprob.shape[1]
        sequences = torch.cat([sequences[parents], ids[:, None]], 1)
        state = (state[0][parents], state[1][parents])
    return sequences[0, 1:]
