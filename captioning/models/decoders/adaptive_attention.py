"""Adaptive attention with a visual sentinel. Knows ids and regions, never words or pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from captioning.models.decoders.base import Decoder
from captioning.models.decoders.cells import LSTM, CellState, between
from captioning.models.decoders.region_attention import mean_region
from captioning.models.decoders.settings import RecurrentConfig, Size
from captioning.ops.attention import additive_scores, attend
from captioning.ops.cpu_kernels import DeferredGradLinear, VocabProjection
from captioning.ops.time_loop import Product, read_word, read_words
from captioning.tensors import Features, SequenceOutput, StepOutput


@dataclass(frozen=True, kw_only=True)
class AdaptiveAttentionConfig(RecurrentConfig):
    """Sizes of the decoder. The regions are projected to `hidden` channels, as the sentinel has so many."""

    kind: Literal["adaptive_attention"] = "adaptive_attention"
    attention_size: Size = 512

    def build(self, *, channels: int, vocabulary_size: int) -> AdaptiveAttention:
        return AdaptiveAttention(self, channels=channels, vocabulary_size=vocabulary_size)


class Memory(NamedTuple):
    regions: Tensor  # (B, N, H)
    keys: Tensor  # (B, N, A)
    valid: Tensor | None  # (B, N)
    mean: Tensor  # (B, 1, 5H), what the image as a whole says to the gates and to the sentinel's


class Products(NamedTuple):
    from_hidden: Product
    query: Product
    sentinel_key: Product


class AdaptiveAttention(Decoder):
    """Looks at the regions after each step of the LSTM, or at what it remembers (Lu et al. 2017).

    With a_i the regions and E the embedding:
        v_i = ReLU(W_a a_i);  v = ReLU(W_b mean a);  x_t = [E y_t-1, v]                (eqs. 14-16)
        h_t, m_t = LSTM(x_t, h_t-1, m_t-1)                                            (eq. 4)
        z_t = w_h . tanh(W_v v_i + W_g h_t);  alpha_t = softmax(z_t);  c_t = sum_i alpha_ti v_i (eqs. 6-8)
        g_t = sigmoid(W_x x_t + W_h h_t-1);  s_t = g_t tanh(m_t)                       (eqs. 9, 10)
        beta_t = last of softmax([z_t, w_h . tanh(W_s s_t + W_g h_t)])                 (eq. 12)
        p(y_t) = softmax(W_p (beta_t s_t + (1 - beta_t) c_t + h_t))                    (eqs. 11, 13)
    `Step.attention` is alpha_t, `Gates.sentinel` beta_t. States are zero at first. Differs: A is a setting, where
    the paper takes the number of regions; keys, gates and W_p have biases; dropout.
    """

    def __init__(self, config: AdaptiveAttentionConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        size = config.hidden
        self.cell = LSTM(size)
        self.project = nn.Sequential(nn.Linear(channels, size), nn.ReLU(), nn.Dropout(config.dropout))
        self.project_mean = nn.Sequential(nn.Linear(channels, size), nn.ReLU(), nn.Dropout(config.dropout))
        self.keys = nn.Linear(size, config.attention_size)
        self.energy = nn.Parameter(torch.empty(config.attention_size))
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        # to the LSTM's four gates and to the sentinel's
        self.word_gates = nn.Linear(config.embedding, 5 * size)
        self.mean_gates = nn.Linear(size, 5 * size, bias=False)
        self.from_hidden = skip_init(nn.Linear, size, 5 * size, bias=False)
        self.query = nn.Linear(size, config.attention_size, bias=False)
        self.sentinel_key = nn.Linear(size, config.attention_size, bias=False)
        self.vocab_projection = VocabProjection(size, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        self._initialise()

    def _initialise(self) -> None:
        size = self.config.hidden
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.normal_(self.energy, std=len(self.energy) ** -0.5)
        for gate in self.from_hidden.weight.data.split(size):
            nn.init.orthogonal_(gate)
        for product in (self.query, self.sentinel_key):
            nn.init.xavier_uniform_(product.weight)
        self.cell.initialise(self.word_gates.bias.data[: 4 * size], forget=self.config.forget_bias)
        nn.init.zeros_(self.word_gates.bias.data[4 * size :])

    def encode_memory(self, features: Features) -> Memory:
        regions = self.project(features.regions)
        whole = self.project_mean(mean_region(features))
        return Memory(
            regions=regions,
            keys=self.keys(regions),
            valid=features.valid,
            mean=self.mean_gates(whole)[:, None],
        )

    def init_state(self, memory: Memory, num_sequences: int) -> CellState:
        zero = memory.mean.new_zeros(len(memory.mean), num_sequences, self.config.hidden)
        return zero, zero

    def step(self, words: Tensor, state: CellState, memory: Memory) -> tuple[StepOutput, CellState]:
        return read_word(self, words, state, memory)

    def forward(
        self, words: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        return read_words(self, words, memory, batch_sizes)

    def products(self) -> Products:
        return Products(
            *(DeferredGradLinear(each) for each in (self.from_hidden, self.query, self.sentinel_key))
        )

    def cell_step(
        self, said: Tensor, state: CellState, memory: Memory, products: Products
    ) -> tuple[StepOutput, CellState]:
        """One step for what words (B, K) say to the gates."""
        sizes = [4 * self.config.hidden, self.config.hidden]
        entered, to_gate = (said + memory.mean).split(sizes, -1)
        recalled, gate = products.from_hidden(state[0]).split(sizes, -1)
        state, gates = self.cell(entered, recalled, state)
        sentinel = torch.sigmoid(to_gate + gate) * torch.tanh(state[1])
        query = products.query(state[0])
        energy = additive_scores(memory.keys, query, self.energy)  # (B, K, N)
        context, attention = attend(energy, memory.regions, memory.valid)
        own = torch.tanh(products.sentinel_key(sentinel) + query) @ self.energy  # (B, K)
        if memory.valid is not None:
            energy = energy.masked_fill(~memory.valid[:, None], float("-inf"))
        beta = torch.sigmoid(own - energy.logsumexp(-1))  # the last of a softmax over N + 1
        mixed = between(context, sentinel, beta[..., None])
        step = StepOutput(
            hidden=mixed + state[0], attention=attention, gates=(gates._replace(sentinel=beta),)
        )
        return step, state

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(self.dropout(hidden))
