"""Bottom-up and top-down attention. Knows ids and regions, never words or pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from captioning.models.decoders.base import Decoder
from captioning.models.decoders.cells import LSTM, CellState
from captioning.models.decoders.region_attention import Additive, AttentionMemory, mean_region, projection
from captioning.models.decoders.settings import RecurrentConfig, Size
from captioning.ops.cpu_kernels import DeferredGradLinear, VocabProjection
from captioning.ops.time_loop import Product, read_word, read_words
from captioning.tensors import Features, SequenceOutput, StepOutput


@dataclass(frozen=True, kw_only=True)
class UpDownConfig(RecurrentConfig):
    """Sizes of the decoder; `features` projects the regions to that many channels first (None: as they come)."""

    kind: Literal["up_down"] = "up_down"
    embedding: Size = 1000
    hidden: Size = 1000
    attention_size: Size = 512
    features: Size | None = None

    def build(self, *, channels: int, vocabulary_size: int) -> UpDown:
        return UpDown(self, channels=channels, vocabulary_size=vocabulary_size)


class Memory(NamedTuple):
    seen: AttentionMemory
    mean: Tensor  # (B, 4H), what the mean region says to the attention LSTM


class State(NamedTuple):
    attention: CellState  # (h1, c1), (B, K, H) each
    language: CellState  # (h2, c2)


class Products(NamedTuple):
    recall: Product
    from_attention: Product
    to_language: Product


class UpDown(Decoder):
    """Two LSTMs: one decides where to look, the other what to say (Anderson et al. 2018, section 3.2).

    With v_i the regions, W_e the embedding:
        x1_t = [h2_t-1, mean v, W_e y_t-1];  h1_t = LSTM(x1_t, h1_t-1)            (eqs. 1, 2)
        a_it = w_a . tanh(W_va v_i + W_ha h1_t);  alpha_t = softmax(a_t)          (eqs. 3, 4)
        z_t  = sum_i alpha_it v_i                                                 (eq. 5)
        x2_t = [z_t, h1_t];  h2_t = LSTM(x2_t, h2_t-1)                            (eqs. 1, 6)
        p(y_t) = softmax(W_p h2_t + b_p)                                          (eq. 7)
    States are zero at first, which the paper leaves open. Differs: the keys W_va v_i have a bias; dropout on
    the embedding and before W_p; the regions may be projected and normalised first (`features`).
    """

    def __init__(self, config: UpDownConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        size = config.hidden
        context = config.features or channels
        self.cell = LSTM(size)
        self.gates = self.cell.blocks * size
        self.project = projection(channels, config.features, dropout=config.dropout)
        self.look = Additive(context, config.attention_size)
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        self.word_gates = nn.Linear(config.embedding, self.gates)
        self.mean_gates = nn.Linear(context, self.gates, bias=False)
        # three products a step: of [h1, h2] for the attention LSTM; of its new h1 for the other and for the
        # query; of [z, h2] for the language LSTM
        self.recall = skip_init(nn.Linear, 2 * size, self.gates, bias=False)
        self.from_attention = skip_init(nn.Linear, size, self.gates + config.attention_size, bias=False)
        self.to_language = skip_init(nn.Linear, context + size, self.gates, bias=False)
        self.language_bias = nn.Parameter(torch.empty(self.gates))
        self.vocab_projection = VocabProjection(size, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        self._initialise()

    def _initialise(self) -> None:
        size = self.config.hidden
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.look.initialise()
        for weight in (self.recall.weight, self.from_attention.weight, self.to_language.weight):
            nn.init.xavier_uniform_(weight)
        for own in (self.recall.weight.data[:, :size], self.to_language.weight.data[:, -size:]):
            for gate in own.split(size):
                nn.init.orthogonal_(gate)
        for bias in (self.word_gates.bias, self.language_bias):
            self.cell.initialise(bias, forget=self.config.forget_bias)

    def encode_memory(self, features: Features) -> Memory:
        features = features._replace(regions=self.project(features.regions))
        return Memory(seen=self.look.encode_memory(features), mean=self.mean_gates(mean_region(features)))

    def init_state(self, memory: Memory, num_sequences: int) -> State:
        zero = memory.mean.new_zeros(len(memory.mean), num_sequences, self.config.hidden)
        return State(attention=(zero, zero), language=(zero, zero))

    def step(self, words: Tensor, state: State, memory: Memory) -> tuple[StepOutput, State]:
        return read_word(self, words, state, memory)

    def forward(
        self, words: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        return read_words(self, words, memory, batch_sizes)

    def products(self) -> Products:
        return Products(
            *(DeferredGradLinear(each) for each in (self.recall, self.from_attention, self.to_language))
        )

    def cell_step(
        self, said: Tensor, state: State, memory: Memory, products: Products
    ) -> tuple[StepOutput, State]:
        """One step for what words (B, K) say to the gates of the attention LSTM."""
        before = state.language[0]
        recalled = products.recall(torch.cat([state.attention[0], before], -1))
        attending, first_gates = self.cell(said + memory.mean[:, None], recalled, state.attention)
        told, query = products.from_attention(attending[0]).split(
            [self.gates, self.config.attention_size], -1
        )
        context, attention = self.look(query, memory.seen)
        heard = products.to_language(torch.cat([context, before], -1))
        speaking, second_gates = self.cell(told + self.language_bias, heard, state.language)
        step = StepOutput(hidden=speaking[0], attention=attention, gates=(first_gates, second_gates))
        return step, State(attention=attending, language=speaking)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(self.dropout(hidden))
