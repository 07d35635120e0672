"""Computed positions beside the papers' equations."""

import torch

from captioning.ops.positions import apply_rope, sinusoids
from tests.helpers.plain_transformer import rotated, sinusoid


def test_sinusoids_are_those_on_paper():
    expected = torch.stack([sinusoid(position, 14) for position in range(3, 8)])
    torch.testing.assert_close(sinusoids(torch.arange(3, 8), 14), expected)


def test_rotated_queries_and_keys_depend_on_their_distance_alone():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 12, dtype=torch.float64)

    def product(query_position, key_position):
        first = apply_rope(query, torch.tensor([query_position]), heads=3)
        second = apply_rope(key, torch.tensor([key_position]), heads=3)
        return (first * second).unflatten(-1, (3, 4)).sum(-1)

    torch.testing.assert_close(product(5, 2), product(1003, 1000))
    assert (product(5, 2) - product(5, 3)).abs().min() > 1e-4
    torch.testing.assert_close(
        apply_rope(query, torch.tensor([7]), heads=3)[0], rotated(query[0], 7, heads=3)
    )
