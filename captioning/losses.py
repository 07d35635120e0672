"""What is minimised, and its parts. Knows logits and attention, no decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def cross_entropy(logits: Tensor, targets: Tensor, *, smoothing: float) -> Tensor:
    """Sum over positions of the cross-entropy with label smoothing (Szegedy et al. 2016), in nats.

    Args:
        logits: (M, V), of the positions that count.
        targets: (M,) int64.
        smoothing: share of the target that is spread evenly over all V words.
    """
    return _CrossEntropy.apply(logits, targets, smoothing)


class _CrossEntropy(torch.autograd.Function):
    """`F.cross_entropy` with two thirds of its passes over (M, V): no gradient of the picked and of the mean alone."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        logp = torch.log_softmax(logits, -1)
        ctx.save_for_backward(logp, targets)
        ctx.smoothing = smoothing
        loss = (smoothing - 1) * logp.gather(1, targets[:, None]).sum()
        return loss - smoothing / logits.shape[1] * logp.sum() if smoothing else loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        logp, targets = ctx.saved_tensors
        gradient = logp.exp()  # softmax - (1 - smoothing) picked - smoothing / V
        if ctx.smoothing:
            gradient.sub_(ctx.smoothing / logp.shape[1])
        picked = gradient.new_full((), ctx.smoothing - 1).expand(len(targets), 1)
        return gradient.scatter_add_(1, targets[:, None], picked).mul_(slope), None, None


def doubly_stochastic(attention: Tensor, counts: Tensor) -> Tensor:
    """Mean over captions of the mean over regions of (1 - sum_t alpha_ti)^2 (Xu et al. 2015, eq. 14).

    Eq. 14 sums over regions; the mean over regions is how reproductions scale it, beside a loss per token.

    Args:
        attention: (B, K, T, N).
        counts: (B, K, T) bool, True at the words that count.
    """
    total = (attention * counts[..., None]).sum(2)  # (B, K, N)
    there = counts.any(2)
    return ((1 - total).square().mean(-1) * there).sum() / there.sum()
