"""Attention functions for K queries per image; the image's regions are never copied K times."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.nn import functional as F

from captioning.ops.cpu_kernels import probe
from captioning.ops.cpu_kernels.additive_scores import blocked_additive_scores


def additive_scores(keys: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    """`weight . tanh(key + query)` for each region and sequence (Bahdanau et al. 2015; Xu et al. 2015, eq. 4).

    Args:
        keys: (B, N, A), computed once per image.
        query: (B, K, A).
        weight: (A,).

    Returns:
        (B, K, N), in the precision of `weight` also where autocast gave keys and queries a lower one.
    """
    dtype = torch.promote_types(keys.dtype, weight.dtype)
    keys, query = keys.to(dtype), query.to(dtype)
    with _autocast_disabled(keys.device.type):
        if probe.usable(keys, query, weight):
            return blocked_additive_scores(keys, query, weight)
        return (keys[:, None] + query[:, :, None]).tanh_() @ weight


def _autocast_disabled(device_type: str) -> contextlib.AbstractContextManager[None]:
    if not torch.amp.is_autocast_available(device_type):  # such as torch's meta device
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


def attend(scores: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax over the regions, and the weighted mean of their values.

    Args:
        scores: (B, K, N).
        values: (B, N, D).
        valid: (B, N) bool, False for padding, which gets no weight; None: no padding.

    Returns:
        context (B, K, D) and attention (B, K, N).
    """
    attention = attention_weights(scores, mask)
    return torch.bmm(attention, values), attention


def attention_weights(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of `scores` (B, K, N) over the regions where `mask` (B, N) is True."""
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
    return torch.softmax(scores, dim=-1)


def multi_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    heads: int,
    allowed: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention in several heads (Vaswani et al. 2017, eq. 1).

    Args:
        query: (R, Q, H). A row may hold the tokens of all K sequences of an image side by side.
        key, value: (R, S, H).
        allowed: bool, broadcast to (R, heads, Q, S); True where a query may attend.

    Returns:
        (R, Q, H).
    """
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, is_causal=causal, dropout_p=dropout
    )
    return out.transpose(1, 2).flatten(-2)
