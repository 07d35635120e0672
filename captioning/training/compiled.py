"""torch.compile where there is a compiler for it. Knows any function of tensors, no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def compiled(
    function: Callable[..., Any], device: torch.device, *, log: Callable[[str], None]
) -> Callable[..., Any]:
    """`function`, compiled for tensors of any size; as it is, and said in one sentence, where nothing compiles.

    Found out by compiling a line: torch tells that a compiler is missing only when first it needs it.
    """
    try:
        torch.compile(_line, fullgraph=True)(torch.ones(2, device=device, requires_grad=True)).backward()
    except Exception as error:  # each backend has its own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        log(f"training.compile: nothing is compiled, for torch cannot on this machine ({reason[0][:200]})")
        return function
    return torch.compile(function, dynamic=True)


def _line(x: torch.Tensor) -> torch.Tensor:
    return (x.sin() * x + 1).sum()
