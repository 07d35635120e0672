"""Positional encodings that are computed, not learned: sinusoidal and rotary."""

from __future__ import annotations

import torch
from torch import Tensor

from captioning.tensors import widest_float

BASE = 10000.0


def sinusoids(positions: Tensor, size: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5: PE(p, 2i) = sin(p / 10000^(2i / H)), PE(p, 2i + 1) = cos of the same.

    Args:
        positions: (T,).
        size: H, even.

    Returns:
        (T, H) float64, or float32 on a device without float64.
    """
    angles = _angles(positions, size)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def apply_rope(x: Tensor, positions: Tensor, *, heads: int) -> Tensor:
    """Rotary position embedding (Su et al. 2021, eq. 34).

    In each head of size d, the pair (2i, 2i + 1) is rotated by p / 10000^(2i / d). The product of a query and a key
    that were both rotated depends on the distance of their positions alone.

    Args:
        x: (..., T, H), d = H / heads even.
        positions: (T,).
    """
    angles = _angles(positions, x.shape[-1] // heads).to(x.dtype)  # (T, d / 2)
    sin, cos = angles.sin()[:, None], angles.cos()[:, None]
    even, odd = x.unflatten(-1, (heads, -1, 2)).unbind(-1)  # (..., T, heads, d / 2)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-3)


def _angles(positions: Tensor, size: int) -> Tensor:
    """(T, size / 2), in float64 where possible: an angle of thousands of radians is not exact in float32."""
    dtype = widest_float(positions.device)
    powers = torch.arange(0, size, 2, dtype=dtype, device=positions.device) / size
    return positions[:, None] / BASE**powers
