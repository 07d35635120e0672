"""Att2in, the decoder of self-critical sequence training (Rennie et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from captioning.models.decoders.base import Decoder
from captioning.models.decoders.cells import CellState, init_gates_orthogonal, zero_state
from captioning.models.decoders.region_attention import Additive, AttentionMemory, projection
from captioning.models.decoders.settings import RecurrentConfig, Size
from captioning.ops.cpu_kernels import DeferredGradLinear, VocabProjection
from captioning.ops.time_loop import Linear, decode_sequence, decode_step
from captioning.tensors import Features, Gates, SequenceOutput, StepOutput


@dataclass(frozen=True, kw_only=True)
class Att2inConfig(RecurrentConfig):
    """Settings of the decoder.

    Attributes:
        features: project the regions to that many channels first; None: no projection.
    """

    kind: Literal["att2in"] = "att2in"
    attention_size: Size = 512
    features: Size | None = None

    def build(self, *, channels: int, vocabulary_size: int) -> Att2in:
        return Att2in(self, channels=channels, vocabulary_size=vocabulary_size)


class LoopWeights(NamedTuple):
    hidden: Linear
    context: Linear


class Att2in(Decoder):
    """A maxout LSTM whose attended regions enter the cell candidate only (Rennie et al. 2017, section 2).

    With I_i the regions, x_t = E y_t-1, and two maxout units a, b:
        i, f, o = sigmoid(W_x x_t + W_h h_t-1 + b)                     of the gates
        alpha_t = softmax(W tanh(W_aI I_i + W_ah h_t-1 + b_a));  z_t = sum_i alpha_ti I_i
        g_t     = max over u = a, b of (W_zx^u x_t + W_zI^u z_t + W_zh^u h_t-1 + b_z^u)
        c_t     = i g_t + f c_t-1;  h_t = o tanh(c_t);  p(y_t) = softmax(W_s h_t)
    The gates are in the order input, forget, output, then both units of the candidate. The initial state is zero.
    Differs: no b_alpha, which changes no softmax; W_s has a bias; dropout; the regions may be projected and
    normalised first (`features`).
    """

    def __init__(self, config: Att2inConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        size = config.hidden
        region_size = config.features or channels
        self.project = projection(channels, config.features, dropout=config.dropout)
        self.attention = Additive(region_size, config.attention_size)
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        self.input_proj = nn.Linear(config.embedding, 5 * size)
        # one product of the hidden state for the gates and the query
        self.hidden_proj = skip_init(nn.Linear, size, 5 * size + config.attention_size, bias=False)
        self.context_proj = skip_init(nn.Linear, region_size, 2 * size, bias=False)
        self.vocab_projection = VocabProjection(size, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        self._init_weights()

    def _init_weights(self) -> None:
        size = self.config.hidden
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.attention.init_weights()
        init_gates_orthogonal(self.hidden_proj.weight.data[: 5 * size], size)
        nn.init.xavier_uniform_(self.hidden_proj.weight.data[5 * size :])
        nn.init.xavier_uniform_(self.context_proj.weight)
        nn.init.zeros_(self.input_proj.bias)
        nn.init.constant_(self.input_proj.bias.data[size : 2 * size], self.config.forget_bias)

    def encode_memory(self, features: Features) -> AttentionMemory:
        return self.attention.encode_memory(features._replace(regions=self.project(features.regions)))

    def init_state(self, memory: AttentionMemory, num_sequences: int) -> CellState:
        zero = zero_state(memory.values, num_sequences, self.config.hidden)
        return zero, zero

    def step(self, ids: Tensor, state: CellState, memory: AttentionMemory) -> tuple[StepOutput, CellState]:
        return decode_step(self, ids, state, memory)

    def forward(
        self, ids: Tensor, memory: AttentionMemory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        return decode_sequence(self, ids, memory, batch_sizes)

    def loop_weights(self) -> LoopWeights:
        return LoopWeights(
            hidden=DeferredGradLinear(self.hidden_proj), context=DeferredGradLinear(self.context_proj)
        )

    def recurrent_step(
        self, input_gates: Tensor, state: CellState, memory: AttentionMemory, weights: LoopWeights
    ) -> tuple[StepOutput, CellState]:
        """Attention and maxout LSTM update of one time step."""
        size = self.config.hidden
        hidden_gates, query = weights.hidden(state[0]).split([5 * size, self.config.attention_size], -1)
        context, attention = self.attention(query, memory)
        gates, units = (input_gates + hidden_gates).split([3 * size, 2 * size], -1)
        input_, forget, output = torch.sigmoid(gates).chunk(3, -1)
        candidate = torch.maximum(*(units + weights.context(context)).chunk(2, -1))
        cell = forget * state[1] + input_ * candidate
        hidden = output * torch.tanh(cell)
        record = Gates(
            input=input_, forget=forget, candidate=candidate, output=output, cell=cell, hidden=hidden
        )
        return StepOutput(hidden=hidden, attention=attention, gates=(record,)), (hidden, cell)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(self.dropout(hidden))
