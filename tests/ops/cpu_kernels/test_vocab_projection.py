"""`VocabProjection` beside `nn.Linear`."""

from __future__ import annotations

import pytest
import torch

from captioning.ops.cpu_kernels import VocabProjection


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [11, 16, 37])
def test_values_and_gradients_equal_those_of_linear(size, dtype):
    torch.manual_seed(0)
    ours, plain = (kind(5, size).to(dtype) for kind in (VocabProjection, torch.nn.Linear))
    plain.load_state_dict(ours.state_dict())
    for shape in ((5,), (7, 5), (2, 3, 5)):
        x = torch.randn(*shape, dtype=dtype, requires_grad=True)
        copy, factors = x.detach().clone().requires_grad_(), torch.randn(*shape[:-1], size, dtype=dtype)
        for linear, input_ in ((ours, x), (plain, copy)):
            linear.zero_grad()
            (linear(input_) * factors).sum().backward()
        torch.testing.assert_close(ours(x), plain(copy))
        torch.testing.assert_close(x.grad, copy.grad)
        for ours_parameter, plain_parameter in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours_parameter.grad, plain_parameter.grad)
        with torch.inference_mode():
            torch.testing.assert_close(ours(x), plain(x))
