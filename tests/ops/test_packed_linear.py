"""Packed weights: the same numbers as `F.linear`, the module itself untouched."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captioning.ops import packed_linear
from captioning.ops.packed_linear import GELULinear, for_rows, product


@pytest.fixture(params=[True, False], ids=["mkl", "onednn"], autouse=True)
def library(request, monkeypatch):
    """Each that a processor may prefer."""
    monkeypatch.setattr(packed_linear, "_mkl_leads", lambda: request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [0, 1, 6, 35])
def test_a_product_is_that_of_linear_for_any_number_of_rows(dtype, rows):
    torch.manual_seed(0)
    weight, bias = torch.randn(13, 11, dtype=dtype), torch.randn(13, dtype=dtype)
    multiply = product(weight, 6, bias)
    x = torch.randn(rows, 11, dtype=dtype)
    torch.testing.assert_close(multiply(x), F.linear(x, weight, bias))


def test_a_transposed_view_is_read_as_what_it_shows():
    weight, x = torch.randn(11, 13).t(), torch.randn(2, 3, 11)
    torch.testing.assert_close(product(weight, 6)(x), F.linear(x, weight))


def test_only_inference_packs_and_the_module_stays_as_it_was():
    module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Sequential(nn.Linear(7, 3)))
    assert for_rows(module, 2) is module
    x = torch.randn(2, 5)
    before = module(x)
    with torch.inference_mode():
        twin = for_rows(module, 2)
        torch.testing.assert_close(twin(x), before.detach())
        assert not any(type(part) is nn.Linear for part in twin.modules())
        assert twin[0].weight is module[0].weight  # shared, not copied
    assert type(module[0]) is nn.Linear and module(x).requires_grad


def test_what_never_meets_that_many_rows_is_never_packed(monkeypatch):
    asked = []
    monkeypatch.setattr(
        packed_linear,
        "product",
        lambda weight, *more, **how: asked.append(weight) or product(weight, *more, **how),
    )
    module = nn.ModuleList([nn.Linear(5, 7), nn.Linear(5, 7)])
    with torch.inference_mode():
        often, once = for_rows(module, 6)
        for _ in range(2):
            x = torch.randn(2, 3, 5)
            torch.testing.assert_close(often(x), module[0](x))
            torch.testing.assert_close(once(x[:1]), module[1](x[:1]))
    assert len(asked) == 1 and asked[0] is module[0].weight


def test_what_is_packed_serves_fewer_rows_too_and_more_take_the_usual_way(monkeypatch):
    plain = nn.Linear(5, 7)
    with torch.inference_mode():
        twin = for_rows(nn.Sequential(plain), 6)[0]
        twin(torch.randn(6, 5))
        for rows, usual in ((6, 0), (4, 0), (7, 1)):
            calls = []
            monkeypatch.setattr(twin, "usual", lambda x, calls=calls: calls.append(x) or plain(x))
            x = torch.randn(rows, 5)
            torch.testing.assert_close(twin(x), plain(x))
            assert len(calls) == usual


def test_a_gelu_in_the_product_is_the_one_behind_it():
    module = GELULinear(5, 7)
    x = 3 * torch.randn(6, 5)
    expected = F.gelu(F.linear(x, module.weight, module.bias))
    torch.testing.assert_close(module(x), expected)
    with torch.inference_mode():
        twin = for_rows(nn.Sequential(module), 6)
        torch.testing.assert_close(twin(x), expected.detach())
        torch.testing.assert_close(twin(x[:2]), expected[:2].detach())
        torch.testing.assert_close(twin(torch.cat([x, x])), torch.cat([expected, expected]).detach())
