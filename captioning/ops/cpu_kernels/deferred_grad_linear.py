"""A linear layer for use inside a time loop: one large product gives the weight's gradient of all steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captioning.ops.cpu_kernels import probe
from captioning.ops.cpu_kernels.packed_linear import prepack_linear


class DeferredGradLinear:
    """An `nn.Linear` without bias for T calls in a loop, with the gradient of its weight computed once at the end.

    Autograd would compute T products of an (out, rows) by a (rows, in) matrix, each reading and writing the whole
    gradient; with few rows that moves more memory than it computes. Here the backward of a call only stores its two
    factors, and after the last one a single product over all T x rows gives the same sum. The weight and its
    transpose are packed for the rows of the first call, which most calls of a loop have.

    Where no gradient is wanted or `probe.usable` refuses, a call is one of the layer itself.
    """

    def __init__(self, linear: nn.Module):
        weight = cast(Tensor, linear.weight)
        self._linear = linear
        self._factors: list[tuple[Tensor, Tensor]] = []
        self._deferred = torch.is_grad_enabled() and weight.requires_grad and probe.usable(weight)
        self._weight = _CollectGradient.apply(weight, self._factors) if self._deferred else None
        self._products: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        if not self._deferred or not probe.usable(x):
            return self._linear(x)
        if self._products is None:
            weight, rows = cast(Tensor, self._linear.weight).detach(), x.shape[:-1].numel()
            self._products = prepack_linear(weight, rows), prepack_linear(weight.t(), rows)
        return _DeferredProduct.apply(x, self._weight, *self._products, self._factors)


class _CollectGradient(torch.autograd.Function):
    """The identity; its backward runs after that of every `_DeferredProduct` that used the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, factors: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.factors = factors
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor | None, None]:
        if not ctx.factors:
            return None, None
        x = torch.cat([x for x, _ in ctx.factors])
        grad = torch.cat([grad for _, grad in ctx.factors])
        ctx.factors.clear()
        return grad.t() @ x, None


class _DeferredProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,  # for autograd only, so that `_CollectGradient` waits for this call
        multiply: Callable[[Tensor], Tensor],
        multiply_transposed: Callable[[Tensor], Tensor],
        factors: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factors, ctx.multiply_transposed = factors, multiply_transposed
        return multiply(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (x,) = ctx.saved_tensors
        ctx.factors.append((x.flatten(0, -2), grad.flatten(0, -2)))
        return ctx.multiply_transposed(grad), None, None, None, None
