"""A decoder: a GRU whose initial state is computed from the mean of the image's regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn

from captioning.models.decoders import BaseDecoderConfig, Decoder, unroll
from captioning.tensors import Features, SequenceOutput, StepOutput


@dataclass(frozen=True, kw_only=True)
class MeanGRUConfig(BaseDecoderConfig):
    """Sizes of the decoder. `kind` is the name under which a config file selects this class."""

    kind: Literal["my_decoder:MeanGRUConfig"] = "my_decoder:MeanGRUConfig"
    embedding: int = 64
    hidden: int = 128

    def build(self, *, channels: int, vocabulary_size: int) -> MeanGRU:
        return MeanGRU(self, channels=channels, vocabulary_size=vocabulary_size)


class Memory(NamedTuple):
    image: Tensor  # (B, H)


class State(NamedTuple):
    hidden: Tensor  # (B, K, H)


class MeanGRU(Decoder):
    """B images x K sequences: no tensor of an image is copied K times, searches only reorder the state."""

    def __init__(self, config: MeanGRUConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        self.image_proj = nn.Linear(channels, config.hidden)
        self.cell = nn.GRUCell(config.embedding, config.hidden)
        self.vocab_projection = nn.Linear(config.hidden, vocabulary_size)

    def encode_memory(self, features: Features) -> Memory:
        regions = features.regions  # (B, N, D)
        if features.mask is None:
            return Memory(self.image_proj(regions.mean(1)).tanh())
        valid = features.mask[..., None].to(regions)  # images may have fewer than N regions
        return Memory(self.image_proj((regions * valid).sum(1) / valid.sum(1)).tanh())

    def init_state(self, memory: Memory, num_sequences: int) -> State:
        return State(memory.image[:, None].expand(-1, num_sequences, -1))

    def step(self, ids: Tensor, state: State, memory: Memory) -> tuple[StepOutput, State]:
        inputs = self.embedding(ids).flatten(0, 1)  # (B * K, E)
        hidden = self.cell(inputs, state.hidden.flatten(0, 1)).view_as(state.hidden)
        return StepOutput(hidden=hidden, attention=None), State(hidden)

    def forward(
        self, ids: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        return unroll(self, ids, memory)  # T calls of `step`; override it if your decoder can do better

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(hidden)
