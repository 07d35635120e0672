"""Sizes of a batch or an update, and the loss that an objective returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from captioning.tensors import Batch


class BatchStats(NamedTuple):
    """Size of a batch, or of all batches of an update over all processes."""

    tokens: float  # targets that are not padding
    captions: float
    images: float
    step: int = 0  # number of the update in the run
    epoch: int = 0  # of the phase, from 0

    @classmethod
    def of(cls, batch: Batch, pad: int) -> BatchStats:
        return cls(batch.tokens, int((batch.ids[..., 1] != pad).sum()), len(batch.image_ids))


class Loss(NamedTuple):
    """`value` is the batch's share of the update's loss; `sums` are logged, each a sum over `of` terms."""

    value: Tensor  # ()
    sums: dict[str, Tensor]
    of: float


class Objective(nn.Module):
    """What an update lowers: `forward(batch, sizes of the update)` is a `Loss`."""

    def end_update(self, totals: dict[str, float]) -> None:
        """Called once after every update, with the sums over its batches and all processes, before they are logged."""
