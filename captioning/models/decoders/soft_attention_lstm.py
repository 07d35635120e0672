"""Show, Attend and Tell (Xu et al. 2015) with soft attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from captioning.models.decoders.base import Decoder
from captioning.models.decoders.cells import CELLS, CellState, expand_state, init_gates_orthogonal
from captioning.models.decoders.region_attention import (
    Additive,
    AttentionMemory,
    Dot,
    MultiHead,
    RegionAttention,
    mean_region,
    projection,
)
from captioning.models.decoders.settings import RecurrentConfig, Size
from captioning.ops.cpu_kernels import DeferredGradLinear, VocabProjection
from captioning.ops.time_loop import Linear, decode_sequence, decode_step
from captioning.tensors import Features, SequenceOutput, StepOutput


@dataclass(frozen=True, kw_only=True)
class SoftAttentionLSTMConfig(RecurrentConfig):
    """Settings of the decoder.

    Attributes:
        cell: the recurrent network; the paper has `lstm`.
        attention: how state and regions are compared; the paper has `additive`.
        attention_size: of a key and a query.
        heads: of `multi_head` attention.
        features: project the regions to that many channels first; None: no projection.
    """

    kind: Literal["soft_attention_lstm"] = "soft_attention_lstm"
    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    attention: Literal["additive", "dot", "multi_head"] = "additive"
    attention_size: Size = 512
    heads: Size = 8
    features: Size | None = None

    def __post_init__(self) -> None:
        if self.attention == "multi_head" and self.attention_size % self.heads:
            raise ValueError(
                f"attention_size must be a multiple of heads, got {self.attention_size} and {self.heads}"
            )

    def build(self, *, channels: int, vocabulary_size: int) -> SoftAttentionLSTM:
        return SoftAttentionLSTM(self, channels=channels, vocabulary_size=vocabulary_size)


class Memory(NamedTuple):
    attention: AttentionMemory
    state: CellState  # (B, 1, H) each, before the first token


class LoopWeights(NamedTuple):
    hidden: Linear
    context: Linear


class SoftAttentionLSTM(Decoder):
    """An LSTM that reads a weighted mean of the regions before each word (Xu et al. 2015).

    With a_i the regions, h and c the state, E the embedding:
        h_0, c_0 = tanh(f_h(mean a)), tanh(f_c(mean a))                       (section 3.1.2)
        e_ti     = v . tanh(W_a a_i + W_h h_t-1);  alpha_t = softmax(e_t)     (eqs. 4, 5)
        z_t      = beta_t sum_i alpha_ti a_i;  beta_t = sigmoid(f_beta(h_t-1)) (eq. 13, section 4.2.1)
        h_t, c_t = LSTM([E y_t-1, z_t], h_t-1, c_t-1)                         (eqs. 1-3)
        p(y_t)   = softmax(L_o tanh(L_E E y_t-1 + L_h h_t + L_z z_t))         (eq. 7)
    With other cells the state is h alone; `attention` replaces eqs. 4 and 5 (see `region_attention`).
    Differs: eq. 7 has no tanh (the authors' code offers it) and no L_E (sizes needn't agree here);
    the regions may be projected and normalised first (`features`).
    The gates are in the order of `torch.nn.LSTM`: input, forget, candidate, output.
    """

    def __init__(self, config: SoftAttentionLSTMConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        size, region_size = config.hidden, config.features or channels
        self.cell = CELLS[config.cell](size)
        self.gate_size = self.cell.num_gates * size
        self.project = projection(channels, config.features, dropout=config.dropout)
        self.state_init = nn.ModuleList(nn.Linear(region_size, size) for _ in range(self.cell.num_states))
        self.attention = _region_attention(config, region_size)
        context_size = self.attention.context_size
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        self.input_proj = nn.Linear(config.embedding, self.gate_size)
        # one product of the hidden state for the gates, the query and beta
        self.hidden_proj = skip_init(nn.Linear, size, self.gate_size + config.attention_size + 1, bias=False)
        self.beta_bias = nn.Parameter(torch.zeros(()))
        self.context_proj = skip_init(nn.Linear, context_size, self.gate_size, bias=False)
        self.deep_output = nn.Linear(size + context_size + config.embedding, config.embedding)
        self.vocab_projection = VocabProjection(config.embedding, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        self._init_weights()

    def _init_weights(self) -> None:
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.attention.init_weights()
        init_gates_orthogonal(self.hidden_proj.weight.data[: self.gate_size], self.config.hidden)
        nn.init.xavier_uniform_(self.hidden_proj.weight.data[self.gate_size :])
        nn.init.xavier_uniform_(self.context_proj.weight)
        self.cell.init_bias(self.input_proj.bias, forget=self.config.forget_bias)

    def encode_memory(self, features: Features) -> Memory:
        features = features._replace(regions=self.project(features.regions))
        mean = mean_region(features)[:, None]
        return Memory(
            attention=self.attention.encode_memory(features),
            state=tuple(torch.tanh(layer(mean)) for layer in self.state_init),
        )

    def init_state(self, memory: Memory, num_sequences: int) -> CellState:
        return expand_state(memory.state, num_sequences)

    def step(self, ids: Tensor, state: CellState, memory: Memory) -> tuple[StepOutput, CellState]:
        return decode_step(self, ids, state, memory, append_embedding=True)

    def forward(
        self, ids: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        return decode_sequence(self, ids, memory, batch_sizes, append_embedding=True)

    def loop_weights(self) -> LoopWeights:
        return LoopWeights(
            hidden=DeferredGradLinear(self.hidden_proj), context=DeferredGradLinear(self.context_proj)
        )

    def recurrent_step(
        self, input_gates: Tensor, state: CellState, memory: Memory, weights: LoopWeights
    ) -> tuple[StepOutput, CellState]:
        """Attention and cell update of one time step; `hidden` of the output is [h_t, z_t]."""
        sizes = [self.gate_size, self.config.attention_size, 1]
        hidden_gates, query, beta = weights.hidden(state[0]).split(sizes, -1)
        context, attention = self.attention(query, memory.attention)  # (B, K, D), (B, K, N)
        context = torch.sigmoid(beta + self.beta_bias) * context
        state, gates = self.cell(input_gates + weights.context(context), hidden_gates, state)
        hidden = torch.cat([state[0], context], -1)
        return StepOutput(hidden=hidden, attention=attention, gates=(gates,)), state

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(self.dropout(torch.tanh(self.deep_output(hidden))))


def _region_attention(config: SoftAttentionLSTMConfig, channels: int) -> RegionAttention:
    if config.attention == "multi_head":
        return MultiHead(channels, config.attention_size, config.heads)
    kind = Dot if config.attention == "dot" else Additive
    return kind(channels, config.attention_size)
