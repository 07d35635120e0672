"""A decoder small enough for exhaustive search, with a state that matters, for tests."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioning.models.decoders.base import Decoder, unroll
from captioning.tensors import Features, Step


class Inner(NamedTuple):
    fast: Tensor  # (B, K, H)


class Carry(NamedTuple):
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

    def remember(self, features: Features) -> Tensor:
        seen = features.regions @ self.regions  # (B, N, H)
        if features.valid is not None:
            seen = seen.masked_fill(~features.valid[..., None], 0.0)
        return 0.2 * seen.sum(1)

    def start(self, memory: Tensor, width: int) -> Carry:
        first = torch.tanh(memory)[:, None].expand(-1, width, -1)
        return Carry(slow=first, inner=Inner(fast=torch.zeros_like(first)))

    def step(self, words: Tensor, carry: Carry, memory: Tensor) -> tuple[Step, Carry]:
        fast = torch.tanh(self.words[words] + carry.inner.fast @ self.mix + memory[:, None])
        slow = 0.7 * carry.slow + fast
        return Step(hidden=slow, attention=None), Carry(slow=slow, inner=Inner(fast=fast))

    def forward(self, words, memory, running=None):
        return unroll(self, words, memory)

    def logits(self, hidden: Tensor) -> Tensor:
        return 0.5 * (hidden @ self.out.T) + self.bias
