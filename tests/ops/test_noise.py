"""Counter-based random numbers are uniform, independent and functions of their counters."""

from collections import Counter

import torch

from captioning.ops import noise
from tests.helpers.searching import (
    chi_square,
)

LEAST_P = 1e-4  # seeds are fixed, so a test that passes goes on to pass; a wrong one is at 1e-20


def test_noise_is_uniform_and_its_counters_are_independent():
    keys = torch.arange(-17, 50)
    state = noise.sequence_states(7, keys, 3)
    numbers = torch.stack([noise.gumbel(noise.mix(state, step), 101) for step in range(5)])
    uniform = torch.exp(-torch.exp(-numbers))  # (5, 67, 3, 101)
    cells = (uniform * 11).long()
    assert chi_square(Counter(cells.flatten().tolist()), dict.fromkeys(range(11), 1 / 11)) > LEAST_P
    pairs = {(a, b): 1 / 121 for a in range(11) for b in range(11)}
    for axis in range(4):  # neighbours along word, image, sequence and place
        size = cells.shape[axis]
        first, second = cells.narrow(axis, 0, size - 1), cells.narrow(axis, 1, size - 1)
        seen = Counter(zip(first.flatten().tolist(), second.flatten().tolist(), strict=True))
        assert chi_square(seen, pairs) > LEAST_P
    assert len(set(numbers.flatten().tolist())) == numbers.numel()
    assert not torch.equal(noise.sequence_states(8, keys, 3), state)


def test_noise_is_a_function_of_its_counters():
    keys = torch.tensor([5, 2**62 + 3, 0])
    state = noise.sequence_states(-3, keys, 5)
    assert torch.equal(noise.sequence_states(-3, keys[[2, 0]], 2), state[[2, 0], :2])
    assert torch.equal(noise.gumbel(state, 7), noise.gumbel(state, 13)[..., :7])
