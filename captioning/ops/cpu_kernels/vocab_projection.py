"""The linear layer to the vocabulary, computed by oneDNN on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captioning.ops.cpu_kernels import probe


class VocabProjection(nn.Linear):
    """`nn.Linear` from hidden states (..., H) to logits (..., V), by oneDNN on a CPU.

    MKL takes up to half as long again where the rows of the result do not begin at whole cache lines, as with most
    vocabulary sizes.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not probe.HAS_ONEDNN or not probe.usable(x, self.weight, dtypes=(torch.float32,)):
            return super().forward(x)
        if torch.is_grad_enabled():
            return _VocabProjection.apply(x, self.weight, self.bias)
        return probe.onednn_product(x, self.weight, self.bias)


class _VocabProjection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return probe.onednn_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        return grad @ weight, rows.t() @ x.reshape(-1, x.shape[-1]), rows.sum(0)
