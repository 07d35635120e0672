"""Counter-based random numbers: functions of seed, image key, sequence, position and token.

As in Salmon et al. 2011, a number is a hash of its counters, so an image's samples are the same alone, in any
batch, in any order, on a CPU and on a GPU. The hash is the finaliser of SplitMix64 (Steele et al. 2014), applied
once per counter, in wrapping int64 arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captioning.tensors import widest_float


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_STEP = _signed(0x9E3779B97F4A7C15)  # the golden ratio, SplitMix64's increment
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _logical_shift(bits: Tensor, by: int) -> Tensor:
    """Logical right shift; int64's own repeats the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def mix(state: Tensor, counter: Tensor | int) -> Tensor:
    """The state that follows from `state` (int64) and `counter`; broadcasts."""
    step = (counter + 1) * _STEP
    bits = state + (step if isinstance(step, Tensor) else _signed(step % (1 << 64)))
    bits = (bits ^ _logical_shift(bits, 30)) * _FIRST
    bits = (bits ^ _logical_shift(bits, 27)) * _SECOND
    return bits ^ _logical_shift(bits, 31)


def sequence_states(seed: int, keys: Tensor, num_sequences: int) -> Tensor:
    """A state for each sequence of each image, (B, K) int64, from the images' `keys` (B,) int64."""
    images = mix(mix(torch.zeros_like(keys), seed), keys)
    return mix(images[:, None], torch.arange(num_sequences, device=keys.device))


def gumbel(state: Tensor, count: int) -> Tensor:
    """`count` Gumbel variables for each state (...): (..., count). Equal states give equal numbers.

    float64, or float32 on a device without float64, where the numbers differ in their last digits.
    """
    bits = mix(state[..., None], torch.arange(count, device=state.device))
    dtype = widest_float(state.device)
    digits = 53 if dtype == torch.float64 else 23  # of which the sum with 0.5 is exact, so below 1
    uniform = (_logical_shift(bits, 64 - digits).to(dtype) + 0.5) * 2.0**-digits  # in (0, 1)
    return -torch.log(-torch.log(uniform))
