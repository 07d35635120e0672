"""Attention on attention. Knows ids and regions, never words or pixels."""

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
from captioning.models.decoders.cells import LSTM, CellState
from captioning.models.decoders.region_attention import AttentionMemory, MultiHead, mean_region, projection
from captioning.models.decoders.settings import RecurrentConfig, Share, Size
from captioning.ops.attention import multi_head
from captioning.ops.cpu_kernels import DeferredGradLinear, VocabProjection
from captioning.ops.time_loop import Product, read_word, read_words
from captioning.tensors import Features, SequenceOutput, StepOutput


@dataclass(frozen=True, kw_only=True)
class AoAConfig(RecurrentConfig):
    """Sizes of the decoder.

    Attributes:
        refining: layers in which the regions attend to one another first; 0: none.
        heads: of each attention; `hidden` must be a multiple.
        gate_dropout: dropout of what an attention on attention reads.
    """

    kind: Literal["aoa"] = "aoa"
    embedding: Size = 1024
    hidden: Size = 1024
    heads: Size = 8
    refining: Annotated[int, Field(ge=0)] = 6
    gate_dropout: Share = 0.3

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden must be a multiple of heads, got {self.hidden} and {self.heads}")

    def build(self, *, channels: int, vocabulary_size: int) -> AoA:
        return AoA(self, channels=channels, vocabulary_size=vocabulary_size)


class Memory(NamedTuple):
    seen: AttentionMemory
    mean: Tensor  # (B, 1, 4H), what the mean region says to the gates


class State(NamedTuple):
    cell: CellState  # (h, m), (B, K, H) each
    context: Tensor  # (B, K, H)


class Products(NamedTuple):
    recall: Product
    query: Product
    judge: Product


class AoA(Decoder):
    """An LSTM whose attention is itself gated by whether it answers the query (Huang et al. 2019).

    AoA(f, Q, K, V) = sigmoid(W_gq Q + W_gv V' + b_g) (W_iq Q + W_iv V' + b_i), V' = f(Q, K, V)  (section 3.1)
    with f multi-head attention. Refining, `refining` times (section 3.2.1):
        A <- LayerNorm(A + AoA(f, W_Q A, W_K A, W_V A))
    Decoding, with E the embedding (section 3.2.2):
        x_t = [E y_t-1, mean A + c_t-1];  h_t, m_t = LSTM(x_t, h_t-1, m_t-1)
        c_t = AoA(f, W_Q h_t, W_K A, W_V A);  p(y_t) = softmax(W_p c_t)
    States are zero at first. The attention that is shown is the mean over heads. Differs: W_V and W_p have
    biases, the keys none; the regions are projected to H channels and normalised before they are refined.
    """

    def __init__(self, config: AoAConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        size = config.hidden
        self.cell = LSTM(size)
        self.project = projection(channels, size, dropout=config.dropout)
        self.refining = nn.ModuleList(Refining(config) for _ in range(config.refining))
        self.look = MultiHead(size, size, config.heads)
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        self.word_gates = nn.Linear(config.embedding, 4 * size)
        self.recall = skip_init(nn.Linear, 2 * size, 4 * size, bias=False)  # of [what was seen, h]
        self.query = nn.Linear(size, size, bias=False)
        self.judge = nn.Linear(2 * size, 2 * size, bias=False)  # of [V', Q]: the information, then its gate
        self.judge_bias = nn.Parameter(torch.zeros(2 * size))
        self.vocab_projection = VocabProjection(size, vocabulary_size)
        self.dropout, self.gate_dropout = nn.Dropout(config.dropout), nn.Dropout(config.gate_dropout)
        self._initialise()

    def _initialise(self) -> None:
        size = self.config.hidden
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.look.initialise()
        nn.init.xavier_uniform_(self.recall.weight)
        for gate in self.recall.weight.data[:, size:].split(size):
            nn.init.orthogonal_(gate)
        for product in (self.query, self.judge):
            nn.init.xavier_uniform_(product.weight)
        self.cell.initialise(self.word_gates.bias, forget=self.config.forget_bias)

    def encode_memory(self, features: Features) -> Memory:
        regions = self.project(features.regions)
        for layer in cast(Iterable[Refining], self.refining):
            regions = layer(regions, features.valid)
        features = features._replace(regions=regions)
        # the mean enters as the last context does, by the same weights
        mean = F.linear(mean_region(features), self.recall.weight[:, : self.config.hidden])
        return Memory(seen=self.look.encode_memory(features), mean=mean[:, None])

    def init_state(self, memory: Memory, num_sequences: int) -> State:
        zero = memory.mean.new_zeros(len(memory.mean), num_sequences, self.config.hidden)
        return State(cell=(zero, zero), context=zero)

    def step(self, words: Tensor, state: State, memory: Memory) -> tuple[StepOutput, State]:
        return read_word(self, words, state, memory)

    def forward(
        self, words: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        return read_words(self, words, memory, batch_sizes)

    def products(self) -> Products:
        return Products(*(DeferredGradLinear(each) for each in (self.recall, self.query, self.judge)))

    def cell_step(
        self, said: Tensor, state: State, memory: Memory, products: Products
    ) -> tuple[StepOutput, State]:
        """One step for what words (B, K) say to the gates."""
        recalled = products.recall(torch.cat([state.context, state.cell[0]], -1))
        cell, gates = self.cell(said + memory.mean, recalled, state.cell)
        query = products.query(cell[0])
        seen, attention = self.look(query, memory.seen)
        judged = products.judge(self.gate_dropout(torch.cat([seen, query], -1))) + self.judge_bias
        context = F.glu(judged, -1)
        step = StepOutput(hidden=context, attention=attention, gates=(gates,))
        return step, State(cell=cell, context=context)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(self.dropout(hidden))


class Refining(nn.Module):
    """One layer in which the regions attend to one another, with attention on that attention."""

    def __init__(self, config: AoAConfig):
        super().__init__()
        size = config.hidden
        self.heads = config.heads
        self.inside = nn.Linear(size, 3 * size)
        self.judge = nn.Linear(2 * size, 2 * size)
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config.gate_dropout)

    def forward(self, regions: Tensor, valid: Tensor | None) -> Tensor:
        """(B, N, H) -> (B, N, H)"""
        query, key, value = self.inside(regions).chunk(3, -1)
        allowed = None if valid is None else valid[:, None, None]
        seen = multi_head(query, key, value, heads=self.heads, allowed=allowed)
        return self.norm(regions + F.glu(self.judge(self.dropout(torch.cat([seen, query], -1))), -1))
