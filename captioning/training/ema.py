"""Exponential moving average (EMA) of the trained weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class EMA:
    """Moving average of a module's trainable parameters: `average <- decay * average + (1 - decay) * weights`.

    The decay rises with the steps, `min(decay, (1 + step) / (10 + step))`, so that the initial weights lose their
    influence early. Buffers are not averaged. With a decay of 0 there is no average, and the weights are used.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self._weights = {
            name: weight for name, weight in module.named_parameters() if decay and weight.requires_grad
        }
        self._averages = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after update number `step` of the phase."""
        if self._weights:
            weight = 1 - min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(
                list(self._averages.values()), [w.detach() for w in self._weights.values()], weight
            )

    def state_dict(self) -> dict[str, Tensor]:
        return self._averages

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self._averages.items():
            tensor.copy_(state[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the averaged weights inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            weight.data, self._averages[name] = self._averages[name], weight.data
