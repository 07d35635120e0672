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
        (B, K, N).
    """
    if torch.is_grad_enabled() and (keys.requires_grad or query.requires_grad or weight.requires_grad):
        return _AdditiveEnergy.apply(keys, query, weight)
    if keys.device.type != "cpu":
        return (keys[:, None] + query[:, :, None]).tanh_() @ weight
    (images, regions, size), width = keys.shape, query.shape[1]
    energy = keys.new_empty(images, width, regions)
    blocks = _blocks(keys, query)
    bent = keys.new_empty(blocks[0].stop, width, regions, size)
    for part in blocks:
        _bend(keys[part], query[part], weight, bent=bent[: part.stop - part.start], energy=energy[part])
    return energy


def _blocks(keys: Tensor, query: Tensor) -> list[slice]:
    """A few images at a time on a CPU, so that what is bent stays in a core's cache between the passes over it."""
    images = len(keys)
    count = max(1, BLOCK // (keys[0].numel() * query.shape[1])) if keys.device.type == "cpu" else images
    return [slice(first, min(first + count, images)) for first in range(0, images, count)]


def _bend(keys: Tensor, query: Tensor, weight: Tensor, *, bent: Tensor, energy: Tensor) -> None:
    """tanh(key + query) into `bent` (B, K, N, A), its product with the weight into `energy` (B, K, N)."""
    # tanh(x) as 1 - 2 sigmoid(-2 x): torch's tanh takes three times as long
    torch.add(-2 * keys[:, None], query[:, :, None], alpha=-2, out=bent)
    torch.sub(bent.new_ones(()), bent.sigmoid_(), alpha=2, out=bent)
    torch.mv(bent.flatten(0, 2), weight, out=energy.view(-1))


class _AdditiveEnergy(torch.autograd.Function):
    """The same with half the passes over (B, K, N, A) that autograd makes."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, query: Tensor, weight: Tensor) -> Tensor:
        bent = keys.new_empty(len(keys), query.shape[1], *keys.shape[1:])  # (B, K, N, A)
        energy = keys.new_empty(bent.shape[:3])
        for part in _blocks(keys, query):
            _bend(keys[part], query[part], weight, bent=bent[part], energy=energy[part])
        ctx.save_for_backward(bent, weight, keys, query)
        return energy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bent, weight, keys, query = ctx.saved_tensors
        to_keys, to_query = (
            torch.empty_like(keys),
            torch.empty_like(query, memory_format=torch.contiguous_format),
        )
        to_weight = torch.zeros_like(weight)
        slope = slope.contiguous()
        blocks = _blocks(keys, query)
        buffer = torch.empty_like(bent[blocks[0]])
        for part in blocks:
            # d tanh = 1 - bent^2, summed over regions for the query and over sequences for the keys
            product = torch.mul(bent[part], slope[part, ..., None], out=buffer[: part.stop - part.start])
            to_weight.addmv_(bent[part].flatten(0, 2).t(), slope[part].flatten())
            product.mul_(bent[part])
            torch.sum(product, 2, out=to_query[part])
            torch.sum(product, 1, out=to_keys[part])
        to_query = weight * (slope.sum(2)[..., None] - to_query)
        to_keys = weight * (slope.sum(1)[..., None] - to_keys)
        return to_keys, to_query, to_weight


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
