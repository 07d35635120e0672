"""Which CPU kernels work on this machine, and for which tensors they may be used."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
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


def mkl_linear(weight: Tensor, rows: int, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """`F.linear` by MKL with the weight packed for `rows` rows; a plain product for any other number of rows."""
    weight = weight.contiguous()
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkl._mkl_linear(x, packed, weight, bias, rows)


def onednn_linear(weight: Tensor, rows: int, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """`F.linear` by oneDNN with the weight packed for about `rows` rows."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: onednn_product(x, packed, bias)


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` by oneDNN, `weight` packed or not."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _works(kernel: Callable[..., Callable[[Tensor], Tensor]]) -> bool:
    """Whether the kernel's operators exist and agree with `F.linear` on 2 x 2 tensors."""
    x, weight, bias = (
        torch.tensor([[1.0, 2.0], [-3.0, 0.5]]),
        torch.tensor([[0.5, -1.0], [2.0, 4.0]]),
        torch.ones(2),
    )
    try:
        with torch.no_grad():
            return torch.allclose(kernel(weight, 2, bias)(x), F.linear(x, weight, bias))
    except (AttributeError, RuntimeError, TypeError):
        # private operators: missing in this build of torch, changed, or not for this processor
        return False


def _prefers_mkl() -> bool:
    """MKL is ahead of oneDNN on Intel's processors with AVX-512; on AMD's, oneDNN takes two thirds of MKL's time.

    With oneDNN in its place a beam search took 5 % (LSTM) and 7 % (Transformer) more CPU time on an Intel processor.
    """
    cpu_info = Path("/proc/cpuinfo")
    vendor = cpu_info.read_text() if cpu_info.exists() else platform.processor()
    return "GenuineIntel" in vendor and torch.backends.cpu.get_cpu_capability() == "AVX512"


HAS_ONEDNN = ENABLED and _works(onednn_linear)
HAS_MKL = ENABLED and _works(mkl_linear)
PREFERS_MKL = HAS_MKL and (not HAS_ONEDNN or _prefers_mkl())


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs of the private operators, for `torch.utils.flop_counter`, which does not count them."""
    formulas: dict[Any, Callable[..., int]] = {}
    if HAS_MKL:
        formulas[torch.ops.mkl._mkl_linear] = _mkl_linear_flops
    if HAS_ONEDNN:
        formulas[torch.ops.mkldnn._linear_pointwise] = _linear_pointwise_flops
    return formulas


def _mkl_linear_flops(x: torch.Size, packed: Any, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * x[:-1].numel() * weight[0] * weight[1]


def _linear_pointwise_flops(x: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
    return 2 * out_shape.numel() * x[-1]
