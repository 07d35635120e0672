"""What is minimised, and its parts. Knows logits and attention, no decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from captioning.tensors import SampledRegions


def cross_entropy(
    logits: Tensor, targets: Tensor, *, smoothing: float, weights: Tensor | None = None
) -> Tensor:
    """Sum over positions of the cross-entropy with label smoothing (Szegedy et al. 2016), in nats.

    Args:
        logits: (M, V), of the positions that count.
        targets: (M,) int64.
        smoothing: share of the target that is spread evenly over all V words.
        weights: (M,), what each position's is multiplied by; None: 1.
    """
    return _CrossEntropy.apply(logits, targets, smoothing, weights)


class _CrossEntropy(torch.autograd.Function):
    """`F.cross_entropy` with half its passes over (M, V): the softmax kept is the gradient, but for the target."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None
    ) -> Tensor:
        share = torch.softmax(logits, -1)
        ctx.save_for_backward(share, targets)
        ctx.smoothing, ctx.weights = smoothing, weights
        total = logits.amax(-1) - share.amax(-1).log()  # the logarithm of the sum of exponentials
        loss = total + (smoothing - 1) * logits.gather(1, targets[:, None])[:, 0]  # (M,)
        if smoothing:
            loss = loss - smoothing / logits.shape[1] * logits.sum(1)
        return loss.sum() if weights is None else (weights * loss).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        share, targets = ctx.saved_tensors
        if ctx.weights is not None:
            slope = slope * ctx.weights[:, None]
        gradient = share * slope  # softmax - (1 - smoothing) picked - smoothing / V
        if ctx.smoothing:
            gradient.sub_(ctx.smoothing / share.shape[1] * slope)
        picked = ((ctx.smoothing - 1) * slope).expand(len(targets), 1)
        return gradient.scatter_add_(1, targets[:, None], picked), None, None, None


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Sum over positions of the mean of KL(p || q) and KL(q || p), nats: the divergence of R-Drop (Liang et al. 2021).

    Args:
        logits, others: (M, V) each, of p and of q. The gradient goes to both.
    """
    logprob, logq = torch.log_softmax(logits, -1), torch.log_softmax(others, -1)
    return ((logprob.exp() - logq.exp()) * (logprob - logq)).sum() / 2


def doubly_stochastic(attention: Tensor, counts: Tensor) -> Tensor:
    """Sum over captions of the mean over regions of (1 - sum_t alpha_ti)^2 (Xu et al. 2015, eq. 14).

    Eq. 14 sums over regions; the mean over regions is how reproductions scale it, beside a loss per token.
    Training divides by the captions of the update, as it divides the cross-entropy by its tokens.

    Args:
        attention: (B, K, T, N).
        counts: (B, K, T) bool, True at the words that count.
    """
    total = (attention * counts[..., None]).sum(2)  # (B, K, N)
    there = counts.any(2)
    return ((1 - total).square().mean(-1) * there).sum()


def caption_logprobs(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Log-likelihood of captions (B, K), nats, without gradient; 0 where there is none.

    Args:
        logits: (M, V), of the words that count, in the order of `counts`.
        targets: (M,) int64.
        counts: (B, K, T) bool, True at the M words that count.
    """
    logprob = torch.zeros(counts.shape, dtype=logits.dtype, device=logits.device)
    logprob[counts] = -F.cross_entropy(logits.detach(), targets, reduction="none")
    return logprob.sum(-1)


def hard_attention(attention: Tensor, looked: SampledRegions, logprob: Tensor, counts: Tensor) -> Tensor:
    """Sum over captions of what a decoder learns from where it has looked (Xu et al. 2015, section 4.1).

    -lambda_r (log p(y | s) - b) log p(s) - lambda_e H[s], whose gradient is REINFORCE's (Williams 1992). Then
    the baseline moves, b <- 0.9 b + 0.1 mean log p(y | s): `looked.baseline` is changed in place. The first
    batch's mean is the first b. Images that saw the expected region add nothing and do not move it.

    Args:
        attention: (B, K, T, N).
        logprob: (B, K), `caption_logprobs`.
        counts: (B, K, T) bool, True at the words that count.
    """
    counts = counts & looked.sampled[..., None]
    there = counts.any(-1)  # (B, K)
    mean = (logprob * there).sum() / there.sum().clamp(min=1)
    baseline = torch.where(looked.baseline.isnan(), mean, looked.baseline)
    chosen = attention.gather(-1, looked.regions[..., None])[..., 0].where(counts, 1.0)  # (B, K, T)
    # a weight that has vanished has no part in the entropy, and no infinite slope
    entropy = torch.special.entr(attention.clamp(min=torch.finfo(attention.dtype).tiny)).sum(-1)
    advantage = (logprob - baseline)[..., None]
    loss = -looked.reward * (advantage * chosen.log()).sum() - looked.entropy * (entropy * counts).sum()
    looked.baseline.copy_(torch.where(there.any(), baseline.lerp(mean, 0.1), looked.baseline))
    return loss
