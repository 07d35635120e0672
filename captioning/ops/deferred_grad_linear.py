"""Products inside a time loop whose weight gradients are one large product. Knows autograd, nothing of captions."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captioning.ops.packed_linear import product
from captioning.ops.time_loop import Product


class DeferredGradLinear:
    """A `nn.Linear` without bias for use T times in a loop, with the weight's gradient computed once, behind it.

    Autograd would compute T products of a (out, rows) by a (rows, in) matrix, each reading and writing the
    whole gradient; with few rows that moves more memory than it computes. Here each call's backward only
    keeps its two factors, and when the last has been reached one product over all T x rows gives the same sum.
    Where no gradient is wanted a call is one of the module itself.
    """

    def __init__(self, linear: nn.Module):
        weight = cast(Tensor, linear.weight)
        self._linear = linear
        self._factors: list[tuple[Tensor, Tensor]] = []
        self._deferred = torch.is_grad_enabled() and weight.requires_grad
        self._weight = _Gathered.apply(weight, self._factors) if self._deferred else None
        # there and back, laid out for the first call's rows: as many as there ever are, and most calls have them
        self._ways: tuple[Product, Product] | None = None
        self._precision = weight.dtype  # theirs

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        if not self._deferred:
            return self._linear(x)
        if self._ways is None:
            weight, rows = _as_autocast(cast(Tensor, self._linear.weight).detach()), x.shape[:-1].numel()
            self._precision, self._ways = weight.dtype, (product(weight, rows), product(weight.t(), rows))
        return _Recorded.apply(x.to(self._precision), self._weight, *self._ways, self._factors)


def _as_autocast(weight: Tensor) -> Tensor:
    """In the type of autocast where it is on: what is told to autograd here, and what goes back, it does not reach."""
    device = weight.device.type
    mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return weight.to(torch.get_autocast_dtype(device)) if mixed else weight


class _Gathered(torch.autograd.Function):
    """The weight itself; its backward runs after every `_Recorded` that used it."""

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
        slope = torch.cat([slope for _, slope in ctx.factors])
        ctx.factors.clear()
        return slope.t() @ x, None


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,  # for autograd: its gradient comes behind all calls
        multiply: Product,
        back: Product,
        factors: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factors, ctx.back = factors, back
        return multiply(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None, None]:
        (x,) = ctx.saved_tensors
        ctx.factors.append((x.flatten(0, -2), slope.flatten(0, -2)))
        return ctx.back(slope), None, None, None, None
