"""Exponential moving average of the weights that train. Knows tensors, no model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class EMA:
    """Average of a module's trainable parameters: `average <- decay * average + (1 - decay) * weights`.

    The decay rises with the steps, `min(decay, (1 + step) / (10 + step))`, so that the start is soon forgotten.
    Buffers are not averaged. With a decay of 0 there is none, and the weights are used as they are.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self._own = {name: each for name, each in module.named_parameters() if decay and each.requires_grad}
        self._average = {name: each.detach().clone() for name, each in self._own.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        if not self._own:
            return
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self._average.values()), [each.detach() for each in self._own.values()], weight
        )

    def state_dict(self) -> dict[str, Tensor]:
        return self._average

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self._average.items():
            tensor.copy_(state[name])

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The module has the average's weights inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, own in self._own.items():
            own.data, self._average[name] = self._average[name], own.data
