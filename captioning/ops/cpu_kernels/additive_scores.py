"""Additive attention scores in blocks that stay in a core's cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1 << 18
"""Numbers per block: a megabyte in float32, half of a typical core's own cache."""


def blocked_additive_scores(keys: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    """`weight . tanh(key + query)` for keys (B, N, A) and query (B, K, A): (B, K, N)."""
    if torch.is_grad_enabled() and (keys.requires_grad or query.requires_grad or weight.requires_grad):
        return _AdditiveScores.apply(keys, query, weight)
    blocks = _blocks(keys, query)
    buffer = keys.new_empty(blocks[0].stop, query.shape[1], *keys.shape[1:])
    return _scores(keys, query, weight, [(block, buffer[: block.stop - block.start]) for block in blocks])


def _blocks(keys: Tensor, query: Tensor) -> list[slice]:
    """Slices of a few images each."""
    images = len(keys)
    count = max(1, BLOCK // (keys[0].numel() * query.shape[1]))
    return [slice(first, min(first + count, images)) for first in range(0, images, count)]


def _scores(keys: Tensor, query: Tensor, weight: Tensor, blocks: list[tuple[slice, Tensor]]) -> Tensor:
    """The scores (B, K, N); writes sigmoid(2 (key + query)) into each block's tensor (B', K, N, A).

    tanh(x) is 2 sigmoid(2 x) - 1, and torch's tanh takes three times as long as its sigmoid.
    """
    scores = keys.new_empty(*query.shape[:2], keys.shape[1])
    keys, query = 2 * keys[:, None], 2 * query[:, :, None]
    for block, sigmoids in blocks:
        torch.add(keys[block], query[block], out=sigmoids).sigmoid_()
        torch.mv(sigmoids.flatten(0, 2), weight, out=scores[block].view(-1))
    return scores.mul_(2).sub_(weight.sum())


class _AdditiveScores(torch.autograd.Function):
    """Makes half the passes over (B, K, N, A) that autograd would."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, query: Tensor, weight: Tensor) -> Tensor:
        ctx.blocks = _blocks(keys, query)
        sigmoids = keys.new_empty(*query.shape[:2], *keys.shape[1:])  # (B, K, N, A)
        ctx.save_for_backward(sigmoids, weight)
        return _scores(keys, query, weight, [(block, sigmoids[block]) for block in ctx.blocks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigmoids, weight = ctx.saved_tensors
        images, sequences, regions, size = sigmoids.shape
        keys_grad = sigmoids.new_empty(images, regions, size)
        query_grad = sigmoids.new_empty(images, sequences, size)
        weight_grad = sigmoids.new_empty(images * sequences, 1, size)
        grad = grad.contiguous()
        buffer = torch.empty_like(sigmoids[ctx.blocks[0]])
        for block in ctx.blocks:
            rows = slice(block.start * sequences, block.stop * sequences)
            torch.bmm(grad.view(-1, 1, regions)[rows], sigmoids.flatten(0, 1)[rows], out=weight_grad[rows])
            # with s the sigmoid, d tanh = 4 s (1 - s), summed over regions for the query, over sequences for keys
            product = torch.mul(
                sigmoids[block], grad[block, ..., None], out=buffer[: block.stop - block.start]
            )
            product.addcmul_(product, sigmoids[block], value=-1)
            torch.sum(product, 2, out=query_grad[block])
            torch.sum(product, 1, out=keys_grad[block])
        weight = 4 * weight
        return keys_grad.mul_(weight), query_grad.mul_(weight), 2 * weight_grad.sum((0, 1)) - grad.sum()
