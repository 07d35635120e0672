"""Weights laid out once for many products with as many rows each. Knows Intel's libraries, nothing of captions."""

from __future__ import annotations

import copy
import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Module = TypeVar("Module", bound=nn.Module)


class GELULinear(nn.Linear):
    """gelu(x W^T + b) (Hendrycks and Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(super().forward(x))


def product(
    weight: Tensor, rows: int, bias: Tensor | None = None, *, gelu: bool = False
) -> Callable[[Tensor], Tensor]:
    """`F.linear(x, weight, bias)`, or `F.gelu` of it, for many `x` (..., in), most of them of `rows` rows in all.

    A matrix product on a CPU first copies its factors into the order in which it reads them. With few rows
    that takes as long as the product; here it is done once: by MKL for Intel's processors with AVX-512, else by
    oneDNN, which is ahead on them. The numbers are the same. Not on a GPU, not in another precision: plain `F.linear`.
    No gradients go through it.
    """
    bend = F.gelu if gelu else _as_it_is
    if not _packs(weight):
        return lambda x: bend(F.linear(x, weight, bias))
    weight = weight.detach()
    if onednn(weight) and not _mkl_leads():
        blocked = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        kind, form = ("gelu", "none") if gelu else ("none", "")
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, blocked, bias, kind, [], form)
    weight = weight.contiguous()
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return lambda x: bend(torch.ops.mkl._mkl_linear(x, packed, weight, bias, rows))


def _as_it_is(x: Tensor) -> Tensor:
    return x


@functools.cache
def _mkl_leads() -> bool:
    """On Intel's processors with AVX-512; on AMD's, oneDNN takes two thirds of MKL's time."""
    cpus = Path("/proc/cpuinfo")
    maker = cpus.read_text() if cpus.exists() else platform.processor()
    return "GenuineIntel" in maker and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _packs(weight: Tensor) -> bool:
    mkl = torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")
    return mkl and _plain(weight)


def _plain(weight: Tensor) -> bool:
    """On a CPU, in float32: what the libraries are asked for."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def onednn(weight: Tensor) -> bool:
    """Whether oneDNN multiplies by `weight` here: on a CPU, in float32."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and _plain(weight)


class _PackedLinear(nn.Module):
    """Packed when it is first given that many rows, then for fewer too: what is looked at once an image never is."""

    def __init__(self, linear: nn.Linear, rows: int):
        super().__init__()
        self.weight, self.bias, self.rows = linear.weight, linear.bias, rows
        self.gelu, self.usual = isinstance(linear, GELULinear), linear.forward
        self.packed: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[:-1].numel()
        if self.packed is None and rows == self.rows:
            self.packed = product(self.weight, rows, self.bias, gelu=self.gelu)
        return self.usual(x) if self.packed is None or rows > self.rows else self.packed(x)


def for_rows(module: Module, rows: int) -> Module:
    """`module` with its `nn.Linear`s packed for `rows` rows: a copy that shares all weights, for inference.

    Where autograd is on the module itself comes back.
    """
    if torch.is_grad_enabled():
        return module
    return _repacked(module, rows)


def _repacked(module: Module, rows: int) -> Module:
    children = {
        name: _PackedLinear(child, rows)
        if isinstance(child, nn.Linear) and _packs(child.weight)
        else child and _repacked(child, rows)
        for name, child in module._modules.items()
    }
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    twin = copy.copy(module)
    twin.__dict__["_modules"] = children
    return twin
