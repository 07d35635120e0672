"""Additive attention scores: the CPU kernel and the plain operation beside tanh written out."""

from __future__ import annotations

import pytest
import torch

from captioning.ops.attention import additive_scores
from captioning.ops.cpu_kernels import probe


@pytest.fixture(params=[True, False], ids=["kernel", "plain"], autouse=True)
def kernels(request, monkeypatch):
    monkeypatch.setattr(probe, "ENABLED", request.param)


def test_gradients():
    torch.manual_seed(0)
    keys, query, weight = (
        torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((2, 5, 7), (2, 3, 7), (7,))
    )
    assert torch.autograd.gradcheck(additive_scores, (keys, query, weight))
    with torch.no_grad():
        plain = torch.stack([torch.tanh(keys + query[:, k, None]) @ weight for k in range(3)], 1)
        torch.testing.assert_close(additive_scores(keys, query, weight), plain)


def test_inputs_of_several_blocks():
    torch.manual_seed(0)
    shapes = ((11, 49, 512), (11, 5, 512), (512,))
    keys, query, weight = (torch.randn(*shape, dtype=torch.double) for shape in shapes)
    with torch.no_grad():
        expected = torch.tanh(keys[:, None] + query[:, :, None]) @ weight
        torch.testing.assert_close(additive_scores(keys, query, weight), expected)


def test_as_exact_as_tanh_in_float32():
    """Also where tanh has long been 1, where it is nearly 0, and where keys and query nearly cancel."""
    torch.manual_seed(0)
    keys, query, weight = torch.randn(3, 7, 61), torch.randn(3, 5, 61), torch.randn(61)
    for scale in (1e-3, 1.0, 30.0, 1e3):
        large, small = keys * scale, query - keys[:, :5] * scale
        exact = torch.tanh((large[:, None] + small[:, :, None]).double()) @ weight.double()
        torch.testing.assert_close(
            additive_scores(large, small, weight).double(),
            exact,
            rtol=0,
            atol=3e-7 * float(weight.abs().sum()),
        )


def test_autocast_keeps_the_precision_of_the_weight():
    torch.manual_seed(0)
    keys, query, weight = torch.randn(3, 7, 61), torch.randn(3, 5, 61), torch.randn(61)
    expected = torch.tanh(keys.bfloat16()[:, None].float() + query.bfloat16()[:, :, None].float()) @ weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = additive_scores(keys.bfloat16(), query.bfloat16(), weight)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
