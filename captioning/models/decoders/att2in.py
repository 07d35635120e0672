"""Att2in of self-critical sequence training. Knows ids and regions, never words or pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from captioning.models.decoders.base import Decoder
from captioning.models.decoders.cells import CellState
from captioning.models.decoders.region_attention import Additive, AttentionMemory, projection
from captioning.models.decoders.settings import RecurrentConfig, Size
from captioning.ops.cpu_kernels import DeferredGradLinear, VocabProjection
from captioning.ops.time_loop import Product, read_word, read_words
from captioning.tensors import Features, Gates, SequenceOutput, StepOutput


@dataclass(frozen=True, kw_only=True)
class Att2inConfig(RecurrentConfig):
    """Sizes of the decoder; `features` projects the regions to that many channels first (None: as they come)."""

    kind: Literal["att2in"] = "att2in"
    attention_size: Size = 512
    features: Size | None = None

    def build(self, *, channels: int, vocabulary_size: int) -> Att2in:
        return Att2in(self, channels=channels, vocabulary_size=vocabulary_size)


class Products(NamedTuple):
    from_hidden: Product
    from_context: Product


class Att2in(Decoder):
    """A maxout LSTM in which what is seen enters the candidate alone (Rennie et al. 2017, section 2).

    With I_i the regions, x_t = E y_t-1, and two maxout units a, b:
        i, f, o = sigmoid(W_x x_t + W_h h_t-1 + b)                     of the gates
        alpha_t = softmax(W tanh(W_aI I_i + W_ah h_t-1 + b_a));  z_t = sum_i alpha_ti I_i
        g_t     = max over u = a, b of (W_zx^u x_t + W_zI^u z_t + W_zh^u h_t-1 + b_z^u)
        c_t     = i g_t + f c_t-1;  h_t = o tanh(c_t);  p(y_t) = softmax(W_s h_t)
    The gates stand in the order input, forget, output, then both units of the candidate. States are zero at
    first. Differs: no b_alpha, which moves no softmax; W_s has a bias; dropout; regions may be projected and
    normalised first (`features`).
    """

    def __init__(self, config: Att2inConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        size = config.hidden
        context = config.features or channels
        self.project = projection(channels, config.features, dropout=config.dropout)
        self.look = Additive(context, config.attention_size)
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        self.word_gates = nn.Linear(config.embedding, 5 * size)
        # one product gives what the state says to the gates and to the attention
        self.from_hidden = skip_init(nn.Linear, size, 5 * size + config.attention_size, bias=False)
        self.from_context = skip_init(nn.Linear, context, 2 * size, bias=False)
        self.vocab_projection = VocabProjection(size, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        self._initialise()

    def _initialise(self) -> None:
        size = self.config.hidden
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.look.initialise()
        for gate in self.from_hidden.weight.data[: 5 * size].split(size):
            nn.init.orthogonal_(gate)
        nn.init.xavier_uniform_(self.from_hidden.weight.data[5 * size :])
        nn.init.xavier_uniform_(self.from_context.weight)
        nn.init.zeros_(self.word_gates.bias)
        nn.init.constant_(self.word_gates.bias.data[size : 2 * size], self.config.forget_bias)

    def encode_memory(self, features: Features) -> AttentionMemory:
        return self.look.encode_memory(features._replace(regions=self.project(features.regions)))

    def init_state(self, memory: AttentionMemory, num_sequences: int) -> CellState:
        zero = memory.values.new_zeros(len(memory.values), num_sequences, self.config.hidden)
        return zero, zero

    def step(self, words: Tensor, state: CellState, memory: AttentionMemory) -> tuple[StepOutput, CellState]:
        return read_word(self, words, state, memory)

    def forward(
        self, words: Tensor, memory: AttentionMemory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        return read_words(self, words, memory, batch_sizes)

    def products(self) -> Products:
        return Products(
            from_hidden=DeferredGradLinear(self.from_hidden),
            from_context=DeferredGradLinear(self.from_context),
        )

    def cell_step(
        self, said: Tensor, state: CellState, memory: AttentionMemory, products: Products
    ) -> tuple[StepOutput, CellState]:
        """One step for what words (B, K) say to the gates."""
        size = self.config.hidden
        recalled, query = products.from_hidden(state[0]).split([5 * size, self.config.attention_size], -1)
        context, attention = self.look(query, memory)
        gates, units = (said + recalled).split([3 * size, 2 * size], -1)
        enter, forget, out = torch.sigmoid(gates).chunk(3, -1)
        candidate = torch.maximum(*(units + products.from_context(context)).chunk(2, -1))
        cell = forget * state[1] + enter * candidate
        hidden = out * torch.tanh(cell)
        shown = Gates(input=enter, forget=forget, candidate=candidate, output=out, cell=cell, hidden=hidden)
        return StepOutput(hidden=hidden, attention=attention, gates=(shown,)), (hidden, cell)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(self.dropout(hidden))
