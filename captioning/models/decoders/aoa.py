"""Attention on attention (Huang et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from captioning.models.decoders.base import Decoder
from captioning.models.decoders.cells import LSTM, CellState, init_gates_orthogonal, zero_state
from captioning.models.decoders.region_attention import AttentionMemory, MultiHead, mean_region, projection
from captioning.models.decoders.settings import Dropout, RecurrentConfig, Size
from captioning.ops.attention import multi_head
from captioning.ops.cpu_kernels import DeferredGradLinear, VocabProjection
from captioning.ops.time_loop import Linear, decode_sequence, decode_step
from captioning.tensors import Features, SequenceOutput, StepOutput


@dataclass(frozen=True, kw_only=True)
class AoAConfig(RecurrentConfig):
    """Settings of the decoder.

    Attributes:
        refining: layers of self-attention over the regions before decoding; 0: none.
        heads: of every attention; `hidden` must be a multiple.
        gate_dropout: dropout of the input of every attention on attention.
    """

    kind: Literal["aoa"] = "aoa"
    embedding: Size = 1024
    hidden: Size = 1024
    heads: Size = 8
    refining: Annotated[int, Field(ge=0, le=1000)] = 6
    gate_dropout: Dropout = 0.3

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden must be a multiple of heads, got {self.hidden} and {self.heads}")

    def build(self, *, channels: int, vocabulary_size: int) -> AoA:
        return AoA(self, channels=channels, vocabulary_size=vocabulary_size)


class Memory(NamedTuple):
    attention: AttentionMemory
    mean_gates: Tensor  # (B, 1, 4H), the mean region's share of the gates


class State(NamedTuple):
    cell: CellState  # (h, m), (B, K, H) each
    context: Tensor  # (B, K, H)


class LoopWeights(NamedTuple):
    hidden: Linear
    query: Linear
    aoa: Linear


class AoA(Decoder):
    """An LSTM whose attention result is gated by how well it answers the query (Huang et al. 2019).

    AoA(f, Q, K, V) = sigmoid(W_gq Q + W_gv V' + b_g) (W_iq Q + W_iv V' + b_i), V' = f(Q, K, V)  (section 3.1)
    with f multi-head attention. Refining, `refining` times (section 3.2.1):
        A <- LayerNorm(A + AoA(f, W_Q A, W_K A, W_V A))
    Decoding, with E the embedding (section 3.2.2):
        x_t = [E y_t-1, mean A + c_t-1];  h_t, m_t = LSTM(x_t, h_t-1, m_t-1)
        c_t = AoA(f, W_Q h_t, W_K A, W_V A);  p(y_t) = softmax(W_p c_t)
    The initial state is zero. The attention returned is the mean over heads. Differs: W_V and W_p have biases, the
    keys none; the regions are projected to H channels and normalised before they are refined.
    Differs from the authors' code: there a refining layer normalises A before its attention, not after the sum, with
    dropout of the attention and of its result, and A is normalised again after the last layer; h_t is normalised
    before W_Q; Q is A or h_t itself, not its product with W_Q; the embedding passes through a ReLU; c_t-1 has dropout,
    and the input of the decoder's AoA none.
    """

    def __init__(self, config: AoAConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        size = config.hidden
        self.cell = LSTM(size)
        self.project = projection(channels, size, dropout=config.dropout)
        self.refining = nn.ModuleList(RefiningLayer(config) for _ in range(config.refining))
        self.attention = MultiHead(size, size, config.heads)
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        self.input_proj = nn.Linear(config.embedding, 4 * size)
        self.hidden_proj = skip_init(nn.Linear, 2 * size, 4 * size, bias=False)  # of [c, h]
        self.query_proj = nn.Linear(size, size, bias=False)
        self.aoa_proj = nn.Linear(
            2 * size, 2 * size, bias=False
        )  # of [V', Q]: the information, then its gate
        self.aoa_bias = nn.Parameter(torch.zeros(2 * size))
        self.vocab_projection = VocabProjection(size, vocabulary_size)
        self.dropout, self.gate_dropout = nn.Dropout(config.dropout), nn.Dropout(config.gate_dropout)
        self._init_weights()

    def _init_weights(self) -> None:
        size = self.config.hidden
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.attention.init_weights()
        nn.init.xavier_uniform_(self.hidden_proj.weight)
        init_gates_orthogonal(self.hidden_proj.weight.data[:, size:], size)
        for layer in (self.query_proj, self.aoa_proj):
            nn.init.xavier_uniform_(layer.weight)
        self.cell.init_bias(self.input_proj.bias, forget=self.config.forget_bias)

    def encode_memory(self, features: Features) -> Memory:
        regions = self.project(features.regions)
        for layer in cast(Iterable[RefiningLayer], self.refining):
            regions = layer(regions, features.mask)
        features = features._replace(regions=regions)
        # the mean is added to the last context (x_t above), so it has the same weights
        mean_gates = F.linear(mean_region(features), self.hidden_proj.weight[:, : self.config.hidden])
        return Memory(attention=self.attention.encode_memory(features), mean_gates=mean_gates[:, None])

    def init_state(self, memory: Memory, num_sequences: int) -> State:
        zero = zero_state(memory.mean_gates, num_sequences, self.config.hidden)
        return State(cell=(zero, zero), context=zero)

    def step(self, ids: Tensor, state: State, memory: Memory) -> tuple[StepOutput, State]:
        return decode_step(self, ids, state, memory)

    def forward(
        self, ids: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        return decode_sequence(self, ids, memory, batch_sizes)

    def loop_weights(self) -> LoopWeights:
        layers = (self.hidden_proj, self.query_proj, self.aoa_proj)
        return LoopWeights(*(DeferredGradLinear(layer) for layer in layers))

    def recurrent_step(
        self, input_gates: Tensor, state: State, memory: Memory, weights: LoopWeights
    ) -> tuple[StepOutput, State]:
        """LSTM update and attention on attention of one time step."""
        hidden_gates = weights.hidden(torch.cat([state.context, state.cell[0]], -1))
        cell, gates = self.cell(input_gates + memory.mean_gates, hidden_gates, state.cell)
        query = weights.query(cell[0])
        attended, attention = self.attention(query, memory.attention)
        information = weights.aoa(self.gate_dropout(torch.cat([attended, query], -1))) + self.aoa_bias
        context = F.glu(information, -1)
        output = StepOutput(hidden=context, attention=attention, gates=(gates,))
        return output, State(cell=cell, context=context)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(self.dropout(hidden))


class RefiningLayer(nn.Module):
    """Self-attention over the regions, with attention on attention."""

    def __init__(self, config: AoAConfig):
        super().__init__()
        size = config.hidden
        self.heads = config.heads
        self.qkv_proj = nn.Linear(size, 3 * size)
        self.aoa_proj = nn.Linear(2 * size, 2 * size)
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config.gate_dropout)

    def forward(self, regions: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, H) -> (B, N, H)"""
        query, key, value = self.qkv_proj(regions).chunk(3, -1)
        allowed = None if mask is None else mask[:, None, None]
        attended = multi_head(query, key, value, heads=self.heads, allowed=allowed)
        information = self.aoa_proj(self.dropout(torch.cat([attended, query], -1)))
        return self.norm(regions + F.glu(information, -1))
