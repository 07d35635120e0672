"""Packed linear layers give the numbers of `F.linear` and leave the original module alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captioning.ops.cpu_kernels import packed_linear, prepack_linear, prepack_module, probe


@pytest.fixture(params=[True, False], ids=["mkl", "onednn"], autouse=True)
def library(request, monkeypatch):
    """Run every test with the library of either processor maker."""
    if not (probe.HAS_MKL if request.param else probe.HAS_ONEDNN):
        pytest.skip("this build of torch has no such operator")
    monkeypatch.setattr(probe, "PREFERS_MKL", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [0, 1, 6, 35])
def test_equals_linear_for_any_number_of_rows(dtype, rows):
    torch.manual_seed(0)
    weight, bias = torch.randn(13, 11, dtype=dtype), torch.randn(13, dtype=dtype)
    multiply = prepack_linear(weight, 6, bias)
    x = torch.randn(rows, 11, dtype=dtype)
    torch.testing.assert_close(multiply(x), F.linear(x, weight, bias))


def test_a_float32_weight_is_packed(monkeypatch):
    calls = []
    for name in ("mkl_linear", "onednn_linear"):
        original = getattr(probe, name)
        monkeypatch.setattr(
            probe, name, lambda *args, name=name, original=original: calls.append(name) or original(*args)
        )
    prepack_linear(torch.randn(13, 11), 6)
    prepack_linear(torch.randn(13, 11, dtype=torch.float64), 6)
    assert calls == ["mkl_linear" if probe.PREFERS_MKL else "onednn_linear"]


def test_a_transposed_view():
    weight, x = torch.randn(11, 13).t(), torch.randn(2, 3, 11)
    torch.testing.assert_close(prepack_linear(weight, 6)(x), F.linear(x, weight))


def test_autocast_after_packing_takes_the_plain_product():
    weight, x = torch.randn(13, 11), torch.randn(6, 11)
    multiply = prepack_linear(weight, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(multiply(x), F.linear(x, weight))
        assert multiply(x.bfloat16()).dtype == torch.bfloat16


def test_only_inference_packs_and_the_original_module_is_unchanged():
    module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Sequential(nn.Linear(7, 3)))
    assert prepack_module(module, 2) is module
    x = torch.randn(2, 5)
    expected = module(x)
    with torch.inference_mode():
        twin = prepack_module(module, 2)
        torch.testing.assert_close(twin(x), expected.detach())
        assert not any(type(part) is nn.Linear for part in twin.modules())
        assert twin[0].weight is module[0].weight  # shared, not copied
    assert type(module[0]) is nn.Linear and module(x).requires_grad


def test_a_layer_that_never_has_that_many_rows_is_never_packed(monkeypatch):
    packed = []
    monkeypatch.setattr(
        packed_linear,
        "prepack_linear",
        lambda weight, *args: packed.append(weight) or prepack_linear(weight, *args),
    )
    module = nn.ModuleList([nn.Linear(5, 7), nn.Linear(5, 7)])
    with torch.inference_mode():
        often, once = prepack_module(module, 6)
        for _ in range(2):
            x = torch.randn(2, 3, 5)
            torch.testing.assert_close(often(x), module[0](x))
            torch.testing.assert_close(once(x[:1]), module[1](x[:1]))
    assert len(packed) == 1 and packed[0] is module[0].weight


@pytest.mark.parametrize("rows", [1, 4, 6, 7, 20])
def test_a_packed_layer_takes_fewer_and_more_rows(rows):
    plain = nn.Linear(5, 7)
    with torch.inference_mode():
        layer = prepack_module(nn.Sequential(plain), 6)[0]
        layer(torch.randn(6, 5))
        assert layer.packed is not None
        x = torch.randn(rows, 5)
        torch.testing.assert_close(layer(x), plain(x))
