"""A decoder small enough for exhaustive search, with a nested state that depends on every token read."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioning.models.decoders.base import Decoder, unroll
from captioning.tensors import Features, StepOutput


class Inner(NamedTuple):
    fast: Tensor  # (B, K, H)


class State(NamedTuple):
    slow: Tensor  # (B, K, H)
    inner: Inner


class Toy(Decoder):
    """A float64 recurrent network with two states of different speed, without attention."""

    def __init__(self, *, channels: int, vocabulary_size: int, seed: int = 0, hidden: int = 7):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.vocabulary_size = vocabulary_size
        self.region_weight, self.token_weight = weight(channels, hidden), weight(vocabulary_size, hidden)
        self.recurrent_weight, self.output_weight = weight(hidden, hidden), weight(vocabulary_size, hidden)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size, dtype=torch.float64))

    def encode_memory(self, features: Features) -> Tensor:
        regions = features.regions @ self.region_weight  # (B, N, H)
        if features.mask is not None:
            regions = regions.masked_fill(~features.mask[..., None], 0.0)
        return 0.2 * regions.sum(1)

    def init_state(self, memory: Tensor, num_sequences: int) -> State:
        first = torch.tanh(memory)[:, None].expand(-1, num_sequences, -1)
        return State(slow=first, inner=Inner(fast=torch.zeros_like(first)))

    def step(self, ids: Tensor, state: State, memory: Tensor) -> tuple[StepOutput, State]:
        recurrent = state.inner.fast @ self.recurrent_weight
        fast = torch.tanh(self.token_weight[ids] + recurrent + memory[:, None])
        slow = 0.7 * state.slow + fast
        return StepOutput(hidden=slow, attention=None), State(slow=slow, inner=Inner(fast=fast))

    def forward(self, ids, memory, batch_sizes=None):
        return unroll(self, ids, memory)

    def logits(self, hidden: Tensor) -> Tensor:
        return 0.5 * (hidden @ self.output_weight.T) + self.bias
