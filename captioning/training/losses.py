"""Training losses: cross-entropy, R-Drop's divergence, doubly stochastic and hard attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from captioning.models.decoders.base import Decoder
from captioning.tensors import SampledRegions


class TargetLogits(NamedTuple):
    """Logits at the M targets that are not padding."""

    logits: Tensor  # (M, V)
    targets: Tensor  # (M,) int64
    positions: Tensor  # (M,) int64, into the flattened (B, K, T)


def target_logits(decoder: Decoder, hidden: Tensor, targets: Tensor, *, pad: int) -> TargetLogits:
    """Logits of `hidden` (B, K, T, H) where `targets` (B, K, T) are not `pad`: none are computed for padding."""
    targets = targets.flatten()
    positions = (targets != pad).nonzero().squeeze(1)
    logits = decoder.logits(hidden.flatten(0, 2).index_select(0, positions))
    return TargetLogits(logits, targets[positions], positions)


def teacher_forced_loss(
    decoder: Decoder, memory: Any, ids: Tensor, batch_sizes: Sequence[int] | None = None, *, pad: int
) -> Tensor:
    """Summed cross-entropy (), in nats, of the captions `ids` (B, K, T + 1), each word given the ones before it.

    Args:
        memory: from `decoder.encode_memory`.
        batch_sizes: as for `Decoder.forward`.
    """
    hidden = decoder(ids[..., :-1], memory, batch_sizes).hidden
    logits, targets, _ = target_logits(decoder, hidden, ids[..., 1:], pad=pad)
    return cross_entropy(logits, targets, smoothing=0.0)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    smoothing: float,
    suppress_ids: Sequence[int] = (),
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over positions of the cross-entropy with label smoothing (Szegedy et al. 2016), in nats.

    Differs: the paper spreads `smoothing` over all V words; here `suppress_ids` get none of it, so the model does not
    learn to predict ids that no search generates.

    Args:
        logits: (M, V).
        targets: (M,) int64.
        smoothing: probability that the target distribution spreads evenly over the words outside `suppress_ids`.
        suppress_ids: distinct ids, see `SpecialTokens`.
        weights: (M,), factor of each position; None: 1.
    """
    return _CrossEntropy.apply(logits, targets, smoothing, tuple(suppress_ids), weights)


class _CrossEntropy(torch.autograd.Function):
    """`F.cross_entropy` with half its passes over (M, V): the stored softmax is most of the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        smoothing: float,
        suppress_ids: tuple[int, ...],
        weights: Tensor | None,
    ) -> Tensor:
        probabilities = torch.softmax(logits, -1)
        ctx.save_for_backward(probabilities, targets)
        ctx.smoothing, ctx.suppress_ids, ctx.weights = smoothing, suppress_ids, weights
        logsumexp = logits.amax(-1) - probabilities.amax(-1).log()
        loss = logsumexp + (smoothing - 1) * logits.gather(1, targets[:, None])[:, 0]  # (M,)
        if smoothing:
            total = logits.sum(1) - sum(logits[:, number] for number in suppress_ids)
            loss = loss - smoothing / (logits.shape[1] - len(suppress_ids)) * total
        return loss.sum() if weights is None else (weights * loss).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        probabilities, targets = ctx.saved_tensors
        if ctx.weights is not None:
            grad_output = grad_output * ctx.weights[:, None]
        # softmax - (1 - smoothing) one_hot(target) - smoothing / (V - S) outside the S suppressed ids
        gradient = probabilities * grad_output
        if ctx.smoothing:
            spread = ctx.smoothing / (probabilities.shape[1] - len(ctx.suppress_ids)) * grad_output
            gradient.sub_(spread)
            for number in ctx.suppress_ids:
                gradient[:, number : number + 1].add_(spread)
        at_target = ((ctx.smoothing - 1) * grad_output).expand(len(targets), 1)
        return gradient.scatter_add_(1, targets[:, None], at_target), None, None, None, None


def divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """Sum over positions of the mean of KL(p || q) and KL(q || p), in nats, as in R-Drop (Liang et al. 2021).

    Args:
        logits_p, logits_q: (M, V). Both receive a gradient.
    """
    logp, logq = torch.log_softmax(logits_p, -1), torch.log_softmax(logits_q, -1)
    return ((logp.exp() - logq.exp()) * (logp - logq)).sum() / 2


def doubly_stochastic(attention: Tensor, valid: Tensor, regions: Tensor | None) -> Tensor:
    """Sum over captions of the mean over the image's regions of (1 - sum_t alpha_ti)^2 (Xu et al. 2015, eq. 14).

    Differs: eq. 14 sums over regions; reproductions scale it by their mean, beside a loss per token. Training divides
    by the captions of the update, as it divides the cross-entropy by the tokens.

    Args:
        attention: (B, K, T, N).
        valid: (B, K, T) bool, False at padding.
        regions: the mask (B, N) bool of the features, False at padding, where attention is 0; None: no padding.
    """
    penalty = (1 - (attention * valid[..., None]).sum(2)).square()  # (B, K, N)
    if regions is None:
        means = penalty.mean(-1)
    else:
        means = (penalty * regions[:, None]).sum(-1) / regions.sum(-1, keepdim=True)
    return (means * valid.any(2)).sum()


def caption_logprobs(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Log-likelihood of captions (B, K), in nats, without gradient; 0 for missing captions.

    Args:
        logits: (M, V), at the M positions where `valid` is True, in order.
        targets: (M,) int64.
        valid: (B, K, T) bool.
    """
    logprob = torch.zeros(valid.shape, dtype=logits.dtype, device=logits.device)
    logprob[valid] = -F.cross_entropy(logits.detach(), targets, reduction="none")
    return logprob.sum(-1)


def region_logprobs(attention: Tensor, regions: Tensor, valid: Tensor) -> Tensor:
    """Log-probability (B, K) of each caption's regions, sum_t log alpha_t[s_t], in nats, with gradient.

    Args:
        attention: (B, K, T, N).
        regions: (B, K, T) int64.
        valid: (B, K, T) bool, False at padding.
    """
    return attention.gather(-1, regions[..., None])[..., 0].where(valid, 1.0).log().sum(-1)


def hard_attention(attention: Tensor, sampled: SampledRegions, logprob: Tensor, valid: Tensor) -> Tensor:
    """Loss of the sampled regions, summed over captions (Xu et al. 2015, section 4.1).

    -lambda_r (log p(y | s) - b) log p(s) - lambda_e H[s], whose gradient is REINFORCE's (Williams 1992); the first term
    is 0 before the first update, when there is no b. Images that used the expected region add nothing.

    Args:
        attention: (B, K, T, N).
        logprob: (B, K), from `caption_logprobs`.
        valid: (B, K, T) bool, False at padding.
    """
    if sampled.sampled is not None:
        valid = valid & sampled.sampled[..., None]
    # a weight that underflowed to 0 would have an infinite slope
    entropy = torch.special.entr(attention.clamp(min=torch.finfo(attention.dtype).tiny)).sum(-1)
    advantage = torch.where(sampled.baseline.isnan(), 0.0, logprob - sampled.baseline)
    reinforce = (advantage * region_logprobs(attention, sampled.regions, valid)).sum()
    return -sampled.reward * reinforce - sampled.entropy * (entropy * valid).sum()


def sampled_logprob(sampled: SampledRegions, logprob: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Sum and number of the log-likelihoods that move hard attention's baseline; arguments as of `hard_attention`."""
    present = valid.any(-1) if sampled.sampled is None else valid.any(-1) & sampled.sampled
    return {"sampled_logprob": (logprob * present).sum(), "sampled_captions": present.sum()}


def move_baseline(baseline: Tensor, totals: dict[str, float]) -> None:
    """b <- 0.9 b + 0.1 mean log p(y | s), in place; the first mean is the first b (Xu et al. 2015, section 4.1).

    Args:
        baseline: ().
        totals: takes out the entries of `sampled_logprob`, summed over an update's batches and processes.
    """
    total, count = totals.pop("sampled_logprob"), totals.pop("sampled_captions")
    if count:
        mean = total / count
        before = float(baseline)
        baseline.fill_(mean if math.isnan(before) else 0.9 * before + 0.1 * mean)
