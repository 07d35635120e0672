"""Ways of attending to regions on the K axis: K queries an image, the regions never copied. No parameters here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK = 1 << 18
"""Numbers that are bent at a time on a CPU: a megabyte in float32, half of a usual core's own cache."""


def additive_energy(keys: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    """`weight . tanh(key + query)` for each region and sequence (Bahdanau et al. 2015; Xu et al. 2015, eq. 4).

    Args:
        keys: (B, N, A), computed once per image.
        query: (B, K, A).
        weight: (A,).

    Returns:
        (B, K, N), in the precision of `weight` where keys and queries are of a lower one, as under autocast.
    """
    precision = torch.promote_types(keys.dtype, weight.dtype)
    keys, query = keys.to(precision), query.to(precision)
    if torch.is_grad_enabled() and (keys.requires_grad or query.requires_grad or weight.requires_grad):
        return _AdditiveEnergy.apply(keys, query, weight)
    if keys.device.type != "cpu":
        return (keys[:, None] + query[:, :, None]).tanh_() @ weight
    blocks = _blocks(keys, query)
    bent = keys.new_empty(blocks[0].stop, query.shape[1], *keys.shape[1:])
    return _energy(keys, query, weight, [(part, bent[: part.stop - part.start]) for part in blocks])


def _blocks(keys: Tensor, query: Tensor) -> list[slice]:
    """A few images at a time on a CPU, so that what is bent stays in a core's cache between the passes over it."""
    images = len(keys)
    count = max(1, BLOCK // (keys[0].numel() * query.shape[1])) if keys.device.type == "cpu" else images
    return [slice(first, min(first + count, images)) for first in range(0, images, count)]


def _energy(keys: Tensor, query: Tensor, weight: Tensor, blocks: list[tuple[slice, Tensor]]) -> Tensor:
    """The energy (B, K, N), and in each block's tensor (B', K, N, A) sigmoid(2 (key + query)).

    tanh(x) is 2 sigmoid(2 x) - 1, and torch's tanh takes three times as long.
    """
    energy = keys.new_empty(*query.shape[:2], keys.shape[1])
    keys, query = 2 * keys[:, None], 2 * query[:, :, None]
    for part, bent in blocks:
        torch.add(keys[part], query[part], out=bent).sigmoid_()
        torch.mv(bent.flatten(0, 2), weight, out=energy[part].view(-1))
    return energy.mul_(2).sub_(weight.sum())


class _AdditiveEnergy(torch.autograd.Function):
    """The same with half the passes over (B, K, N, A) that autograd makes."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, query: Tensor, weight: Tensor) -> Tensor:
        ctx.blocks = _blocks(keys, query)
        bent = keys.new_empty(*query.shape[:2], *keys.shape[1:])  # (B, K, N, A)
        ctx.save_for_backward(bent, weight)
        return _energy(keys, query, weight, [(part, bent[part]) for part in ctx.blocks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bent, weight = ctx.saved_tensors
        images, width, regions, size = bent.shape
        to_keys, to_query = bent.new_empty(images, regions, size), bent.new_empty(images, width, size)
        to_weight = bent.new_empty(images * width, 1, size)
        slope = slope.contiguous()
        buffer = torch.empty_like(bent[ctx.blocks[0]])
        for part in ctx.blocks:
            rows = slice(part.start * width, part.stop * width)
            torch.bmm(slope.view(-1, 1, regions)[rows], bent.flatten(0, 1)[rows], out=to_weight[rows])
            # with s the sigmoid, d tanh = 4 s (1 - s), summed over regions for the query, over sequences for keys
            product = torch.mul(bent[part], slope[part, ..., None], out=buffer[: part.stop - part.start])
            product.addcmul_(product, bent[part], value=-1)
            torch.sum(product, 2, out=to_query[part])
            torch.sum(product, 1, out=to_keys[part])
        weight = 4 * weight
        return to_keys.mul_(weight), to_query.mul_(weight), 2 * to_weight.sum((0, 1)) - slope.sum()


def attend(energy: Tensor, values: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax over the regions and the expected region.

    Args:
        energy: (B, K, N).
        values: (B, N, D).
        valid: (B, N) bool or None; where False a region gets no weight.

    Returns:
        context (B, K, D) and attention (B, K, N).
    """
    attention = attention_weights(energy, valid)
    return torch.bmm(attention, values), attention


def attention_weights(energy: Tensor, valid: Tensor | None) -> Tensor:
    """Softmax of `energy` (B, K, N) over the regions that `valid` (B, N) has."""
    if valid is not None:
        energy = energy.masked_fill(~valid[:, None], float("-inf"))
    return torch.softmax(energy, dim=-1)


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
    """Scaled dot-product attention in `heads` parts (Vaswani et al. 2017, eq. 1).

    Args:
        query: (R, Q, H). Rows may hold the words of all K sequences of an image side by side.
        key, value: (R, S, H).
        allowed: bool, broadcast to (R, heads, Q, S); True where a query may look.

    Returns:
        (R, Q, H).
    """
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, is_causal=causal, dropout_p=dropout
    )
    return out.transpose(1, 2).flatten(-2)
