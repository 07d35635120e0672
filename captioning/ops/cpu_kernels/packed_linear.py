"""Linear layers whose weight is laid out once for many products with the same number of rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioning.ops.cpu_kernels import probe

Module = TypeVar("Module", bound=nn.Module)


def prepack_linear(weight: Tensor, rows: int, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """`F.linear` with this weight and bias, for repeated calls with `x` (..., in) of about `rows` rows in all.

    A matrix product on a CPU first copies its factors into the order in which it reads them; with few rows that
    takes as long as the product. Here the weight is copied once. Inputs that are not float32 on the CPU, or under
    autocast, take the plain `F.linear`. No gradients are recorded.
    """
    weight = weight.detach()
    if not _packable(weight):
        return lambda x: F.linear(x, weight, bias)
    packed = (probe.mkl_linear if probe.PREFERS_MKL else probe.onednn_linear)(weight, rows, bias)
    return lambda x: packed(x) if _packable(x) else F.linear(x, weight, bias)


def _packable(tensor: Tensor) -> bool:
    return (probe.HAS_MKL or probe.HAS_ONEDNN) and probe.usable(tensor, dtypes=(torch.float32,))


class PackedLinear(nn.Module):
    """An `nn.Linear` that packs its weight when it is first called with `rows` rows.

    Layers that are called once per image never reach that number and stay as they are.
    """

    def __init__(self, linear: nn.Linear, rows: int):
        super().__init__()
        self.weight, self.bias, self.rows = linear.weight, linear.bias, rows
        self.plain = linear.forward
        self.packed: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is None and x.shape[:-1].numel() == self.rows:
            self.packed = prepack_linear(self.weight, self.rows, self.bias)
        return self.plain(x) if self.packed is None else self.packed(x)


def prepack_module(module: Module, rows: int) -> Module:
    """A copy of `module`, sharing its weights, whose `nn.Linear` layers are packed for `rows` rows.

    For inference: with gradients enabled, or where nothing can be packed, `module` itself is returned.
    """
    return module if torch.is_grad_enabled() else _with_packed_layers(module, rows)


def _with_packed_layers(module: Module, rows: int) -> Module:
    children = {
        name: PackedLinear(child, rows)
        if isinstance(child, nn.Linear) and _packable(child.weight)
        else child and _with_packed_layers(child, rows)
        for name, child in module._modules.items()
    }
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    twin = copy.copy(module)
    twin.__dict__["_modules"] = children
    return twin
