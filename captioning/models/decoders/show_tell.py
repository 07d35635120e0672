"""Show and Tell: the image is the first word. Knows ids and regions, never words or pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.utils import skip_init

from captioning.models.decoders.base import Decoder
from captioning.models.decoders.cells import CELLS, CellState
from captioning.models.decoders.region_attention import mean_region
from captioning.models.decoders.settings import RecurrentConfig
from captioning.ops.cpu_kernels import DeferredGradLinear, VocabProjection
from captioning.ops.time_loop import Product, batch_sizes_of, loop, read
from captioning.tensors import Features, SequenceOutput, StepOutput


@dataclass(frozen=True, kw_only=True)
class ShowTellConfig(RecurrentConfig):
    """Sizes of the decoder, and its recurrent network: `lstm` is the paper's."""

    kind: Literal["show_tell"] = "show_tell"
    cell: Literal["lstm", "gru", "rnn"] = "lstm"

    def build(self, *, channels: int, vocabulary_size: int) -> ShowTell:
        return ShowTell(self, channels=channels, vocabulary_size=vocabulary_size)


class Memory(NamedTuple):
    state: CellState  # (B, 1, H) each, after the image


class ShowTell(Decoder):
    """Reads the image once, before the words, and then remembers it (Vinyals et al. 2015, section 3.1).

    x_-1 = CNN(I);  x_t = W_e S_t;  p_t+1 = LSTM(x_t)              (eqs. 10-12)
    The LSTM's output m_t goes through a linear layer and softmax  (eqs. 4-9)
    The state is zero before the image. CNN(I) is the mean region, projected to the embedding's size. It is
    read once per image, whatever the number of captions or hypotheses. No attention is shown.
    Differs: the LSTM has biases, and a tanh of the cell before the output gate (eq. 8 has none).
    """

    def __init__(self, config: ShowTellConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        self.cell = CELLS[config.cell](config.hidden)
        gates = self.cell.blocks * config.hidden
        self.see = nn.Linear(channels, config.embedding)
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        self.word_gates = nn.Linear(config.embedding, gates)
        self.from_hidden = skip_init(nn.Linear, config.hidden, gates, bias=False)
        self.vocab_projection = VocabProjection(config.hidden, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        for gate in self.from_hidden.weight.data.split(config.hidden):
            nn.init.orthogonal_(gate)
        self.cell.initialise(self.word_gates.bias, forget=self.config.forget_bias)

    def encode_memory(self, features: Features) -> Memory:
        said = self.word_gates(self.dropout(self.see(mean_region(features))))[:, None]  # (B, 1, gates)
        zero = said.new_zeros(len(said), 1, self.config.hidden)
        state, _ = self.cell(said, said.new_zeros(said.shape), (zero,) * self.cell.states)
        return Memory(state=state)

    def init_state(self, memory: Memory, num_sequences: int) -> CellState:
        return tuple(part.expand(-1, num_sequences, -1) for part in memory.state)

    def step(self, words: Tensor, state: CellState, memory: Memory) -> tuple[StepOutput, CellState]:
        _, said = read(words, self.embedding, self.dropout, self.word_gates)
        return self._cell(said, state, DeferredGradLinear(self.from_hidden))

    def forward(
        self, words: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        runs, from_hidden = batch_sizes_of(words, batch_sizes), DeferredGradLinear(self.from_hidden)
        said = self.word_gates(self.dropout(self.embedding(runs.gathered(words))))
        return loop(
            runs,
            said,
            self.init_state(memory, runs.width),
            lambda each, state: self._cell(each, state, from_hidden),
        )

    def _cell(self, said: Tensor, state: CellState, from_hidden: Product) -> tuple[StepOutput, CellState]:
        """One step for what words (B, K) say to the gates."""
        state, gates = self.cell(said, from_hidden(state[0]), state)
        return StepOutput(hidden=state[0], attention=None, gates=(gates,)), state

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(self.dropout(hidden))
