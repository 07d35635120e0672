"""Show, Attend and Tell with soft attention. Knows ids and regions, never words or pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from captioning.models.decoders.base import Decoder
from captioning.models.decoders.cells import CELLS, CellState
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
from captioning.ops.time_loop import Product, batch_sizes_of, loop, read
from captioning.tensors import Features, SequenceOutput, StepOutput


@dataclass(frozen=True, kw_only=True)
class SoftAttentionLSTMConfig(RecurrentConfig):
    """The decoder's parts and sizes.

    Attributes:
        cell: the recurrent network; `lstm` is the paper's.
        attention: how state and regions are compared; `additive` is the paper's.
        attention_size: of a key and a query.
        heads: parts of these; `multi_head` alone reads it.
        features: project the regions to that many channels first (None: as they come).
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
    seen: AttentionMemory
    state: CellState  # (B, H) each, before the first word


class Products(NamedTuple):
    from_hidden: Product
    from_context: Product


class SoftAttentionLSTM(Decoder):
    """LSTM over words that looks at a weighted mean of the regions before each (Xu et al. 2015).

    With a_i the regions, h and c the state, E the embedding:
        h_0, c_0 = tanh(f_h(mean a)), tanh(f_c(mean a))                       (section 3.1.2)
        e_ti     = v . tanh(W_a a_i + W_h h_t-1);  alpha_t = softmax(e_t)     (eqs. 4, 5)
        z_t      = beta_t sum_i alpha_ti a_i;  beta_t = sigmoid(f_beta(h_t-1)) (eq. 13, section 4.2.1)
        h_t, c_t = LSTM([E y_t-1, z_t], h_t-1, c_t-1)                         (eqs. 1-3)
        p(y_t)   = softmax(L_o tanh(L_E E y_t-1 + L_h h_t + L_z z_t))         (eq. 7)
    With other cells the state is h alone; `attention` replaces eqs. 4 and 5 (`regions.Dot`, `MultiHead`).
    Differs: eq. 7 has no tanh (the authors' code offers it) and no L_E (sizes needn't agree here);
    the regions may be projected and normalised first (`features`).
    The gates stand in the order of `torch.nn.LSTM`: input, forget, candidate, output.
    """

    def __init__(self, config: SoftAttentionLSTMConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        size = config.hidden
        channels, regions = config.features or channels, channels
        self.cell = CELLS[config.cell](size)
        self.gates = self.cell.blocks * size
        self.project = projection(regions, config.features, dropout=config.dropout)
        self.first = nn.ModuleList(nn.Linear(channels, size) for _ in range(self.cell.states))
        self.look = _look(config, channels)
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        self.word_gates = nn.Linear(config.embedding, self.gates)
        # one product gives what the state says to the gates, to the attention and to beta
        self.from_hidden = skip_init(nn.Linear, size, self.gates + config.attention_size + 1, bias=False)
        self.beta_bias = nn.Parameter(torch.zeros(()))
        self.from_context = skip_init(nn.Linear, self.look.context, self.gates, bias=False)
        self.deep = nn.Linear(size + self.look.context + config.embedding, config.embedding)
        self.vocab_projection = VocabProjection(config.embedding, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.look.initialise()
        for gate in self.from_hidden.weight.data[: self.gates].split(self.config.hidden):
            nn.init.orthogonal_(gate)
        nn.init.xavier_uniform_(self.from_hidden.weight.data[self.gates :])
        nn.init.xavier_uniform_(self.from_context.weight)
        self.cell.initialise(self.word_gates.bias, forget=self.config.forget_bias)

    def encode_memory(self, features: Features) -> Memory:
        features = features._replace(regions=self.project(features.regions))
        mean = mean_region(features)
        return Memory(
            seen=self.look.encode_memory(features),
            state=tuple(torch.tanh(first(mean)) for first in self.first),
        )

    def init_state(self, memory: Memory, num_sequences: int) -> CellState:
        return tuple(part[:, None].expand(-1, num_sequences, -1) for part in memory.state)

    def step(self, words: Tensor, state: CellState, memory: Memory) -> tuple[StepOutput, CellState]:
        embedded, said = read(words, self.embedding, self.dropout, self.word_gates)
        step, state = self._cell(said, state, memory, self._products())
        return step._replace(hidden=torch.cat([step.hidden, embedded], -1)), state

    def forward(
        self, words: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        runs, products = batch_sizes_of(words, batch_sizes), self._products()
        embedded = self.dropout(self.embedding(runs.gathered(words)))
        steps = loop(
            runs,
            self.word_gates(embedded),
            self.init_state(memory, runs.width),
            lambda said, state: self._cell(said, state, memory, products),
        )
        behind = runs.stacked(runs.parted(embedded))
        return steps._replace(hidden=torch.cat([steps.hidden, behind], -1))

    def _products(self) -> Products:
        return Products(
            from_hidden=DeferredGradLinear(self.from_hidden),
            from_context=DeferredGradLinear(self.from_context),
        )

    def _cell(
        self, said: Tensor, state: CellState, memory: Memory, products: Products
    ) -> tuple[StepOutput, CellState]:
        """One step for what words (B, K) say to the gates; its `hidden` is [h_t, z_t]."""
        recalled, query, beta = products.from_hidden(state[0]).split(
            [self.gates, self.config.attention_size, 1], -1
        )
        context, attention = self.look(query, memory.seen)
        context = torch.sigmoid(beta + self.beta_bias) * context
        state, gates = self.cell(said + products.from_context(context), recalled, state)
        hidden = torch.cat([state[0], context], -1)
        return StepOutput(hidden=hidden, attention=attention, gates=(gates,)), state

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(self.dropout(torch.tanh(self.deep(hidden))))


def _look(config: SoftAttentionLSTMConfig, channels: int) -> RegionAttention:
    if config.attention == "multi_head":
        return MultiHead(channels, config.attention_size, config.heads)
    kind = Dot if config.attention == "dot" else Additive
    return kind(channels, config.attention_size)
