"""What is minimised, and its parts. Knows logits and attention, no decoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, targets: Tensor, *, smoothing: float) -> Tensor:
    """Sum over positions of the cross-entropy with label smoothing (Szegedy et al. 2016), in nats.

    Args:
        logits: (M, V), of the positions that count.
        targets: (M,) int64.
        smoothing: share of the target that is spread evenly over all V words.
    """
    return F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")


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


def perplexity(loss_per_token: float) -> float:
    """exp of a mean cross-entropy in nats."""
    return float(torch.tensor(loss_per_token, dtype=torch.float64).exp())
