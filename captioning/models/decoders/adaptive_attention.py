"""Adaptive attention with a visual sentinel (Lu et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from captioning.models.decoders.base import Decoder
from captioning.models.decoders.cells import LSTM, CellState, init_gates_orthogonal, interpolate, zero_state
from captioning.models.decoders.region_attention import mean_region
from captioning.models.decoders.settings import RecurrentConfig, Size
from captioning.ops.attention import additive_scores, attend
from captioning.ops.cpu_kernels import DeferredGradLinear, VocabProjection
from captioning.ops.time_loop import Linear, decode_sequence, decode_step
from captioning.tensors import Features, SequenceOutput, StepOutput


@dataclass(frozen=True, kw_only=True)
class AdaptiveAttentionConfig(RecurrentConfig):
    """Settings of the decoder. The regions are projected to `hidden` channels, the size of the sentinel."""

    kind: Literal["adaptive_attention"] = "adaptive_attention"
    attention_size: Size = 512

    def build(self, *, channels: int, vocabulary_size: int) -> AdaptiveAttention:
        return AdaptiveAttention(self, channels=channels, vocabulary_size=vocabulary_size)


class Memory(NamedTuple):
    regions: Tensor  # (B, N, H)
    keys: Tensor  # (B, N, A)
    mask: Tensor | None  # (B, N)
    mean_gates: Tensor  # (B, 1, 5H), the mean region's share of the gates


class LoopWeights(NamedTuple):
    hidden: Linear
    query: Linear
    sentinel_key: Linear


class AdaptiveAttention(Decoder):
    """Attends to the regions after each LSTM step, or to a sentinel of its own memory (Lu et al. 2017).

    With a_i the regions and E the embedding:
        v_i = ReLU(W_a a_i);  v = ReLU(W_b mean a);  x_t = [E y_t-1, v]                (eqs. 14-16)
        h_t, m_t = LSTM(x_t, h_t-1, m_t-1)                                            (eq. 4)
        z_t = w_h . tanh(W_v v_i + W_g h_t);  alpha_t = softmax(z_t);  c_t = sum_i alpha_ti v_i (eqs. 6-8)
        g_t = sigmoid(W_x x_t + W_h h_t-1);  s_t = g_t tanh(m_t)                       (eqs. 9, 10)
        beta_t = last of softmax([z_t, w_h . tanh(W_s s_t + W_g h_t)])                 (eq. 12)
        p(y_t) = softmax(W_p (beta_t s_t + (1 - beta_t) c_t + h_t))                    (eqs. 11, 13)
    `StepOutput.attention` is alpha_t, `Gates.sentinel` beta_t. The initial state is zero. Differs: A is a setting,
    where the paper takes the number of regions; keys, gates and W_p have biases; dropout.
    """

    def __init__(self, config: AdaptiveAttentionConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        size = config.hidden
        self.cell = LSTM(size)
        self.project = nn.Sequential(nn.Linear(channels, size), nn.ReLU(), nn.Dropout(config.dropout))
        self.mean_project = nn.Sequential(nn.Linear(channels, size), nn.ReLU(), nn.Dropout(config.dropout))
        self.key_proj = nn.Linear(size, config.attention_size)
        self.score_weight = nn.Parameter(torch.empty(config.attention_size))
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        # the LSTM's four gates, then the sentinel's
        self.input_proj = nn.Linear(config.embedding, 5 * size)
        self.mean_proj = nn.Linear(size, 5 * size, bias=False)
        self.hidden_proj = skip_init(nn.Linear, size, 5 * size, bias=False)
        self.query_proj = nn.Linear(size, config.attention_size, bias=False)
        self.sentinel_key_proj = nn.Linear(size, config.attention_size, bias=False)
        self.vocab_projection = VocabProjection(size, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        self._init_weights()

    def _init_weights(self) -> None:
        size = self.config.hidden
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.normal_(self.score_weight, std=len(self.score_weight) ** -0.5)
        init_gates_orthogonal(self.hidden_proj.weight.data, size)
        for layer in (self.query_proj, self.sentinel_key_proj):
            nn.init.xavier_uniform_(layer.weight)
        self.cell.init_bias(self.input_proj.bias.data[: 4 * size], forget=self.config.forget_bias)
        nn.init.zeros_(self.input_proj.bias.data[4 * size :])

    def encode_memory(self, features: Features) -> Memory:
        regions = self.project(features.regions)
        mean = self.mean_project(mean_region(features))
        return Memory(
            regions=regions,
            keys=self.key_proj(regions),
            mask=features.mask,
            mean_gates=self.mean_proj(mean)[:, None],
        )

    def init_state(self, memory: Memory, num_sequences: int) -> CellState:
        zero = zero_state(memory.mean_gates, num_sequences, self.config.hidden)
        return zero, zero

    def step(self, ids: Tensor, state: CellState, memory: Memory) -> tuple[StepOutput, CellState]:
        return decode_step(self, ids, state, memory)

    def forward(
        self, ids: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        return decode_sequence(self, ids, memory, batch_sizes)

    def loop_weights(self) -> LoopWeights:
        layers = (self.hidden_proj, self.query_proj, self.sentinel_key_proj)
        return LoopWeights(*(DeferredGradLinear(layer) for layer in layers))

    def recurrent_step(
        self, input_gates: Tensor, state: CellState, memory: Memory, weights: LoopWeights
    ) -> tuple[StepOutput, CellState]:
        """LSTM update, sentinel and attention of one time step."""
        sizes = [4 * self.config.hidden, self.config.hidden]
        input_gates, sentinel_input = (input_gates + memory.mean_gates).split(sizes, -1)
        hidden_gates, sentinel_hidden = weights.hidden(state[0]).split(sizes, -1)
        state, gates = self.cell(input_gates, hidden_gates, state)
        sentinel = torch.sigmoid(sentinel_input + sentinel_hidden) * torch.tanh(state[1])
        query = weights.query(state[0])
        scores = additive_scores(memory.keys, query, self.score_weight)  # (B, K, N)
        context, attention = attend(scores, memory.regions, memory.mask)
        sentinel_score = torch.tanh(weights.sentinel_key(sentinel) + query) @ self.score_weight  # (B, K)
        if memory.mask is not None:
            scores = scores.masked_fill(~memory.mask[:, None], float("-inf"))
        beta = torch.sigmoid(sentinel_score - scores.logsumexp(-1))  # the last of a softmax over N + 1
        mixture = interpolate(context, sentinel, beta[..., None])
        gates = gates._replace(sentinel=beta)
        return StepOutput(hidden=mixture + state[0], attention=attention, gates=(gates,)), state

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(self.dropout(hidden))
