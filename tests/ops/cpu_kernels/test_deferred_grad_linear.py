"""`DeferredGradLinear` in a loop beside the plain linear layer."""

from __future__ import annotations

import pytest
import torch

from captioning.ops.cpu_kernels import DeferredGradLinear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_equal_plain_ones(dtype):
    torch.manual_seed(0)
    linear = torch.nn.Linear(5, 5, bias=False, dtype=dtype)
    start = torch.randn(3, 2, 5, dtype=dtype, requires_grad=True)

    def loop(product):
        x, total = start, 0.0
        for t in range(4):
            x = torch.tanh(product(x[:, : 2 if t < 2 else 1]))
            total = total + x.sum()
        return total

    ours = torch.autograd.grad(loop(DeferredGradLinear(linear)), [linear.weight, start])
    plain = torch.autograd.grad(loop(linear), [linear.weight, start])
    for deferred, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(deferred, expected)


def test_a_layer_without_gradients_is_called_itself():
    linear, x = torch.nn.Linear(5, 3, bias=False), torch.randn(2, 5)
    with torch.no_grad():
        assert torch.equal(DeferredGradLinear(linear)(x), linear(x))
    linear.requires_grad_(False)
    assert not DeferredGradLinear(linear)(x).requires_grad
