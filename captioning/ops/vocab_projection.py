"""Scores of all words of a vocabulary, from one large product. Knows how libraries multiply, nothing of captions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captioning.ops.packed_linear import onednn


class VocabProjection(nn.Linear):
    """`nn.Linear` to a vocabulary, (..., H) -> (..., V), by oneDNN on a CPU.

    MKL takes up to half as long again where the rows of the result do not begin at whole cache lines, as with
    most vocabularies. The numbers are those of `nn.Linear`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not onednn(self.weight) or torch.compiler.is_compiling():
            return super().forward(x)
        if torch.is_grad_enabled():
            return _VocabProjection.apply(x, self.weight, self.bias)
        return _scores(x, self.weight, self.bias)


def _scores(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _VocabProjection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _scores(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows = slope.reshape(-1, slope.shape[-1])
        return slope @ weight, rows.t() @ x.reshape(-1, x.shape[-1]), rows.sum(0)
