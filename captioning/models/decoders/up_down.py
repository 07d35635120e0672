"""Bottom-up and top-down attention (Anderson et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from captioning.models.decoders.base import Decoder
from captioning.models.decoders.cells import LSTM, CellState, init_gates_orthogonal, zero_state
from captioning.models.decoders.region_attention import Additive, AttentionMemory, mean_region, projection
from captioning.models.decoders.settings import RecurrentConfig, Size
from captioning.ops.cpu_kernels import DeferredGradLinear, VocabProjection
from captioning.ops.time_loop import Linear, decode_sequence, decode_step
from captioning.tensors import Features, SequenceOutput, StepOutput


@dataclass(frozen=True, kw_only=True)
class UpDownConfig(RecurrentConfig):
    """Settings of the decoder.

    Attributes:
        features: project the regions to that many channels first; None: no projection.
    """

    kind: Literal["up_down"] = "up_down"
    embedding: Size = 1000
    hidden: Size = 1000
    attention_size: Size = 512
    features: Size | None = None

    def build(self, *, channels: int, vocabulary_size: int) -> UpDown:
        return UpDown(self, channels=channels, vocabulary_size=vocabulary_size)


class Memory(NamedTuple):
    attention: AttentionMemory
    mean_gates: Tensor  # (B, 1, 4H), the mean region's share of the attention LSTM's gates


class State(NamedTuple):
    attention: CellState  # (h1, c1), (B, K, H) each
    language: CellState  # (h2, c2)


class LoopWeights(NamedTuple):
    attention_lstm: Linear
    attention_hidden: Linear
    language_lstm: Linear


class UpDown(Decoder):
    """An attention LSTM that chooses regions and a language LSTM that predicts words (Anderson et al. 2018, sec. 3.2).

    With v_i the regions, W_e the embedding:
        x1_t = [h2_t-1, mean v, W_e y_t-1];  h1_t = LSTM(x1_t, h1_t-1)            (eqs. 1, 2)
        a_it = w_a . tanh(W_va v_i + W_ha h1_t);  alpha_t = softmax(a_t)          (eqs. 3, 4)
        z_t  = sum_i alpha_it v_i                                                 (eq. 5)
        x2_t = [z_t, h1_t];  h2_t = LSTM(x2_t, h2_t-1)                            (eqs. 1, 6)
        p(y_t) = softmax(W_p h2_t + b_p)                                          (eq. 7)
    The initial states are zero, which the paper leaves open. Differs: the keys W_va v_i have a bias; dropout of
    the embedding and before W_p; the regions may be projected and normalised first (`features`).
    """

    def __init__(self, config: UpDownConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        size = config.hidden
        region_size = config.features or channels
        self.cell = LSTM(size)
        self.gate_size = self.cell.num_gates * size
        self.project = projection(channels, config.features, dropout=config.dropout)
        self.attention = Additive(region_size, config.attention_size)
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        self.input_proj = nn.Linear(config.embedding, self.gate_size)
        self.mean_proj = nn.Linear(region_size, self.gate_size, bias=False)
        # three products per step: of [h1, h2] for the attention LSTM; of its new h1 for the language LSTM and the
        # query; of [z, h2] for the language LSTM
        self.attention_lstm_proj = skip_init(nn.Linear, 2 * size, self.gate_size, bias=False)
        self.attention_hidden_proj = skip_init(
            nn.Linear, size, self.gate_size + config.attention_size, bias=False
        )
        self.language_lstm_proj = skip_init(nn.Linear, region_size + size, self.gate_size, bias=False)
        self.language_bias = nn.Parameter(torch.empty(self.gate_size))
        self.vocab_projection = VocabProjection(size, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        self._init_weights()

    def _init_weights(self) -> None:
        size = self.config.hidden
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.attention.init_weights()
        for layer in (self.attention_lstm_proj, self.attention_hidden_proj, self.language_lstm_proj):
            nn.init.xavier_uniform_(layer.weight)
        init_gates_orthogonal(self.attention_lstm_proj.weight.data[:, :size], size)  # of its own h1
        init_gates_orthogonal(self.language_lstm_proj.weight.data[:, -size:], size)  # of its own h2
        for bias in (self.input_proj.bias, self.language_bias):
            self.cell.init_bias(bias, forget=self.config.forget_bias)

    def encode_memory(self, features: Features) -> Memory:
        features = features._replace(regions=self.project(features.regions))
        mean_gates = self.mean_proj(mean_region(features))[:, None]
        return Memory(attention=self.attention.encode_memory(features), mean_gates=mean_gates)

    def init_state(self, memory: Memory, num_sequences: int) -> State:
        zero = zero_state(memory.mean_gates, num_sequences, self.config.hidden)
        return State(attention=(zero, zero), language=(zero, zero))

    def step(self, ids: Tensor, state: State, memory: Memory) -> tuple[StepOutput, State]:
        return decode_step(self, ids, state, memory)

    def forward(
        self, ids: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        return decode_sequence(self, ids, memory, batch_sizes)

    def loop_weights(self) -> LoopWeights:
        layers = (self.attention_lstm_proj, self.attention_hidden_proj, self.language_lstm_proj)
        return LoopWeights(*(DeferredGradLinear(layer) for layer in layers))

    def recurrent_step(
        self, input_gates: Tensor, state: State, memory: Memory, weights: LoopWeights
    ) -> tuple[StepOutput, State]:
        """Attention LSTM, attention and language LSTM of one time step; `input_gates` are the attention LSTM's."""
        language_hidden = state.language[0]
        hidden_gates = weights.attention_lstm(torch.cat([state.attention[0], language_hidden], -1))
        attention_state, attention_gates = self.cell(
            input_gates + memory.mean_gates, hidden_gates, state.attention
        )
        language_input, query = weights.attention_hidden(attention_state[0]).split(
            [self.gate_size, self.config.attention_size], -1
        )
        context, attention = self.attention(query, memory.attention)
        hidden_gates = weights.language_lstm(torch.cat([context, language_hidden], -1))
        language_state, language_gates = self.cell(
            language_input + self.language_bias, hidden_gates, state.language
        )
        gates = (attention_gates, language_gates)
        output = StepOutput(hidden=language_state[0], attention=attention, gates=gates)
        return output, State(attention=attention_state, language=language_state)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(self.dropout(hidden))
