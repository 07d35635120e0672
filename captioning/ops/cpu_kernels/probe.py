"""Which CPU kernels work on this machine, and for which tensors they may be used."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ENABLED = os.environ.get("CAPTIONING_CPU_KERNELS", "1") != "0"
"""The one switch for all kernels."""


def usable(*tensors: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)) -> bool:
    """Whether a kernel may be used for `tensors`: on a CPU, of one of `dtypes`, outside autocast and torch.compile."""
    if not ENABLED or torch.compiler.is_compiling():
        return False
    if not all(tensor.device.type == "cpu" and tensor.dtype in dtypes for tensor in tensors):
        return False
    return not torch.is_autocast_enabled("cpu")


def onednn_usable(*tensors: Tensor) -> bool:
    """Whether oneDNN's operators exist here and may be used for `tensors`; they are for float32 alone."""
    return HAS_ONEDNN and usable(*tensors, dtypes=(torch.float32,))


def onednn_pack(weight: Tensor, rows: int) -> Tensor:
    """The weight of a linear layer in oneDNN's memory layout for about `rows` rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` by oneDNN, `weight` packed or not."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def agrees_with_linear(product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> bool:
    """Whether `product(x, weight, bias)` runs in this build of torch and equals `F.linear` on 2 x 2 tensors."""
    x, weight = torch.tensor([[1.0, 2.0], [-3.0, 0.5]]), torch.tensor([[0.5, -1.0], [2.0, 4.0]])
    bias = torch.ones(2)
    try:
        with torch.no_grad():
            return torch.allclose(product(x, weight, bias), F.linear(x, weight, bias))
    except (AttributeError, RuntimeError):  # no such operator, or not for this processor
        return False


HAS_ONEDNN = (
    ENABLED
    and agrees_with_linear(onednn_linear)
    and agrees_with_linear(lambda x, weight, bias: onednn_linear(x, onednn_pack(weight, 2), bias))
)


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs of the private operators, for `torch.utils.flop_counter`, which does not count them."""
    return {torch.ops.mkldnn._linear_pointwise: _linear_flops} if HAS_ONEDNN else {}


def _linear_flops(x: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
    return 2 * out_shape.numel() * x[-1]
