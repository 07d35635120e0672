"""What an objective is told about an update, and what it gives back. Computes nothing."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from captioning.tensors import Batch


class BatchStats(NamedTuple):
    """How much there is in a batch, or in all batches of an update, over all processes."""

    tokens: float  # targets that count
    captions: float
    images: float
    step: int = 0  # which update of the run it is
    epoch: int = 0  # of the phase, from 0

    @classmethod
    def of(cls, batch: Batch, pad: int) -> BatchStats:
        return cls(batch.tokens, int((batch.ids[..., 1] != pad).sum()), len(batch.image_ids))


class Loss(NamedTuple):
    """`value` is this batch's share of the update's loss; `sums` are for the record, each a sum over `of` things."""

    value: Tensor  # ()
    sums: dict[str, Tensor]
    of: float
