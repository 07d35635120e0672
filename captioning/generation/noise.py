"""Random numbers that depend on what they are for and on nothing else. Knows no searches.

A counter-based generator (Salmon et al. 2011): a number is a hash of (seed, image key, sequence, word, place),
so an image's draws are the same alone, in any batch, in any order, on a CPU and on a GPU. The hash is the
finaliser of SplitMix64 (Steele et al. 2014), applied once a counter, in int64 that wraps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_STEP = _signed(0x9E3779B97F4A7C15)  # the golden ratio, SplitMix64's increment
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Logical shift to the right: int64's own repeats the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def mixed(state: Tensor, counter: Tensor | int) -> Tensor:
    """`state` (int64) after `counter`, another state; broadcasts."""
    step = (counter + 1) * _STEP
    bits = state + (step if isinstance(step, Tensor) else _signed(step % (1 << 64)))
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def streams(seed: int, keys: Tensor, width: int) -> Tensor:
    """A state for each of `width` sequences of each image, (B, width) int64.

    Args:
        keys: (B,) int64, what tells an image from the others: its own, wherever it stands.
    """
    images = mixed(mixed(torch.zeros_like(keys), seed), keys)
    return mixed(images[:, None], torch.arange(width, device=keys.device))


def gumbel(state: Tensor, count: int) -> Tensor:
    """`count` Gumbel variables for each state (...): (..., count) float64. Equal states give equal numbers."""
    bits = mixed(state[..., None], torch.arange(count, device=state.device))
    uniform = (_shifted(bits, 11).double() + 0.5) * 2.0**-53  # in (0, 1)
    return -torch.log(-torch.log(uniform))
