"""Show and Tell (Vinyals et al. 2015): the image is the recurrent network's first input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.utils import skip_init

from captioning.models.decoders.base import Decoder
from captioning.models.decoders.cells import CELLS, CellState, expand_state, init_gates_orthogonal
from captioning.models.decoders.region_attention import mean_region
from captioning.models.decoders.settings import RecurrentConfig
from captioning.ops.cpu_kernels import DeferredGradLinear, VocabProjection
from captioning.ops.time_loop import decode_sequence, decode_step
from captioning.tensors import Features, SequenceOutput, StepOutput


@dataclass(frozen=True, kw_only=True)
class ShowTellConfig(RecurrentConfig):
    """Settings of the decoder.

    Attributes:
        cell: the recurrent network; the paper has `lstm`.
    """

    kind: Literal["show_tell"] = "show_tell"
    cell: Literal["lstm", "gru", "rnn"] = "lstm"

    def build(self, *, channels: int, vocabulary_size: int) -> ShowTell:
        return ShowTell(self, channels=channels, vocabulary_size=vocabulary_size)


class Memory(NamedTuple):
    state: CellState  # (B, 1, H) each, after the image


class ShowTell(Decoder):
    """A recurrent network that reads the image once, before the words (Vinyals et al. 2015, section 3.1).

    x_-1 = CNN(I);  x_t = W_e S_t;  p_t+1 = LSTM(x_t)              (eqs. 10-12)
    The LSTM's output m_t goes through a linear layer and softmax  (eqs. 4-9)
    The state is zero before the image. CNN(I) is the mean region, projected to the embedding's size. It is
    read once per image, whatever the number of captions or hypotheses. There is no attention.
    Differs: the LSTM has biases, and a tanh of the cell before the output gate (eq. 8 has none).
    """

    def __init__(self, config: ShowTellConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        self.cell = CELLS[config.cell](config.hidden)
        gate_size = self.cell.num_gates * config.hidden
        self.image_proj = nn.Linear(channels, config.embedding)
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        self.input_proj = nn.Linear(config.embedding, gate_size)
        self.hidden_proj = skip_init(nn.Linear, config.hidden, gate_size, bias=False)
        self.vocab_projection = VocabProjection(config.hidden, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        init_gates_orthogonal(self.hidden_proj.weight.data, config.hidden)
        self.cell.init_bias(self.input_proj.bias, forget=self.config.forget_bias)

    def encode_memory(self, features: Features) -> Memory:
        image = self.dropout(self.image_proj(mean_region(features)))
        input_gates = self.input_proj(image)[:, None]  # (B, 1, gates)
        zero = input_gates.new_zeros(len(input_gates), 1, self.config.hidden)
        state, _ = self.cell(
            input_gates, input_gates.new_zeros(input_gates.shape), (zero,) * self.cell.num_states
        )
        return Memory(state=state)

    def init_state(self, memory: Memory, num_sequences: int) -> CellState:
        return expand_state(memory.state, num_sequences)

    def step(self, ids: Tensor, state: CellState, memory: Memory) -> tuple[StepOutput, CellState]:
        return decode_step(self, ids, state, memory)

    def forward(
        self, ids: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        return decode_sequence(self, ids, memory, batch_sizes)

    def loop_weights(self) -> DeferredGradLinear:
        return DeferredGradLinear(self.hidden_proj)

    def recurrent_step(
        self, input_gates: Tensor, state: CellState, memory: Memory, weights: DeferredGradLinear
    ) -> tuple[StepOutput, CellState]:
        """The cell's update of one time step."""
        state, gates = self.cell(input_gates, weights(state[0]), state)
        return StepOutput(hidden=state[0], attention=None, gates=(gates,)), state

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(self.dropout(hidden))
