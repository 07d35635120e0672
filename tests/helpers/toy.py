"""A decoder small enough for exhaustive search, with a state that matters, for tests."""

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
    """Remembers all words that it has read."""

    def __init__(self, *, channels: int, vocabulary_size: int, seed: int = 0, hidden: int = 7):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.vocabulary_size = vocabulary_size
        self.regions, self.words = weight(channels, hidden), weight(vocabulary_size, hidden)
        self.mix, self.out = weight(hidden, hidden), weight(vocabulary_size, hidden)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size, dtype=torch.float64))

    def encode_memory(self, features: Features) -> Tensor:
        seen = features.regions @ self.regions  # (B, N, H)
        if features.mask is not None:
            seen = seen.masked_fill(~features.mask[..., None], 0.0)
        return 0.2 * seen.sum(1)

    def init_state(self, memory: Tensor, num_sequences: int) -> State:
        first = torch.tanh(memory)[:, None].expand(-1, num_sequences, -1)
        return State(slow=first, inner=Inner(fast=torch.zeros_like(first)))

    def step(self, words: Tensor, state: State, memory: Tensor) -> tuple[StepOutput, State]:
        fast = torch.tanh(self.words[words] + state.inner.fast @ self.mix + memory[:, None])
        slow = 0.7 * state.slow + fast
        return StepOutput(hidden=slow, attention=None), State(slow=slow, inner=Inner(fast=fast))

    def forward(self, words, memory, batch_sizes=None):
        return unroll(self, words, memory)

    def logits(self, hidden: Tensor) -> Tensor:
        return 0.5 * (hidden @ self.out.T) + self.bias
