"""Scores of all words of a vocabulary, from one large product. Knows memory layout, nothing of captions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ALIGNED = 16
"""Numbers in a cache line of float32."""


class WordScores(nn.Linear):
    """`nn.Linear` to a vocabulary, (..., H) -> (..., V), whose result lies in rows of a multiple of `ALIGNED` numbers.

    The matrix product on a CPU takes up to 40 % longer where a row of the result begins anywhere (9,487 words).
    The result is then a view of a somewhat wider tensor and not contiguous; its numbers are those of `nn.Linear`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or self.out_features % ALIGNED == 0 or torch.compiler.is_compiling():
            return super().forward(x)
        if torch.is_grad_enabled():
            return _WordScores.apply(x, self.weight, self.bias)
        return _scores(x, self.weight, self.bias)


def aligned(shape: torch.Size, like: Tensor) -> Tensor:
    """An empty tensor of `shape` whose rows (its last dimension) begin at multiples of `ALIGNED` numbers."""
    width = -(-shape[-1] // ALIGNED) * ALIGNED
    return like.new_empty(*shape[:-1], width)[..., : shape[-1]]


def _scores(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = aligned(torch.Size([*x.shape[:-1], len(weight)]), x)
    rows = out.flatten(0, -2) if x.dim() > 1 else out[None]
    torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight.t(), out=rows)
    return out


class _WordScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _scores(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows = slope.flatten(0, -2) if slope.dim() > 1 else slope[None]
        return slope @ weight, rows.t() @ x.reshape(-1, x.shape[-1]), rows.sum(0)
