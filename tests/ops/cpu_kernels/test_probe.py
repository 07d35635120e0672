"""Which tensors the kernels accept, how a missing operator is noticed, and the switch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from captioning.ops.cpu_kernels import DeferredGradLinear, VocabProjection, prepack_module, probe


def test_usable_refuses_other_devices_dtypes_autocast_and_the_switch(monkeypatch):
    x = torch.zeros(2, 3)
    assert probe.usable(x, x) and probe.usable(x.double())
    assert not probe.usable(x, torch.zeros(2, device="meta"))
    assert not probe.usable(x.bfloat16()) and not probe.usable(x, x.half())
    assert not probe.usable(x.double(), dtypes=(torch.float32,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not probe.usable(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not probe.usable(x)
    monkeypatch.undo()
    monkeypatch.setattr(probe, "ENABLED", False)
    assert not probe.usable(x)


def missing(weight, rows, bias):
    return torch.ops.mkl._there_is_no_such_operator(weight)


def refused(weight, rows, bias):
    raise RuntimeError("not supported on this processor")


def wrong(weight, rows, bias):
    return lambda x: x @ weight.t()  # without the bias


@pytest.mark.parametrize("kernel", [missing, refused, wrong])
def test_a_missing_refused_or_wrong_kernel_is_not_used(kernel):
    assert not probe._works(kernel)
    assert probe._works(lambda weight, rows, bias: lambda x: x @ weight.t() + bias)


def test_the_environment_variable_turns_every_kernel_off():
    code = (
        "import torch; from captioning.ops.cpu_kernels import probe; "
        "print(probe.ENABLED, probe.HAS_MKL, probe.HAS_ONEDNN, probe.usable(torch.zeros(2)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CAPTIONING_CPU_KERNELS": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False"] * 4


def test_with_the_switch_off_layers_are_plain(monkeypatch):
    monkeypatch.setattr(probe, "ENABLED", False)
    for name in ("mkl_linear", "onednn_linear", "onednn_product"):
        monkeypatch.setattr(probe, name, None)  # a call would raise
    linear, vocabulary, x = nn.Linear(5, 7, bias=False), VocabProjection(5, 11), torch.randn(3, 5)
    assert torch.equal(DeferredGradLinear(linear)(x), linear(x))
    assert torch.equal(vocabulary(x), nn.functional.linear(x, vocabulary.weight, vocabulary.bias))
    with torch.inference_mode():
        assert prepack_module(linear, 3) is linear


@pytest.mark.parametrize(
    "layer", [VocabProjection(5, 11), nn.Linear(5, 11, bias=False)], ids=["vocab", "loop"]
)
def test_the_layers_can_be_traced_for_torch_compile(layer):
    """`torch.export` traces as torch.compile does; a private operator or a Python autograd function would show."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            product = (
                self.layer if isinstance(self.layer, VocabProjection) else DeferredGradLinear(self.layer)
            )
            return product(x)

    program = torch.export.export(Model(), (torch.randn(3, 5),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets == {"aten.linear.default"}
