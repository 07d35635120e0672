"""FLOPs and summaries of the benchmarks of torch code."""

import pytest
import torch

from captioning.benchmarks.torch_harness import count_flops, lines, summarize
from captioning.ops.cpu_kernels import prepack_linear, probe


@pytest.mark.parametrize("mkl", [True, False], ids=["mkl", "onednn"])
def test_products_of_packed_weights_are_counted(mkl, monkeypatch):
    monkeypatch.setattr(probe, "PREFERS_MKL", mkl)
    x, weight = torch.randn(3, 5, 7), torch.randn(11, 7)
    with torch.no_grad():
        packed = count_flops(lambda: prepack_linear(weight, 15)(x))
        assert packed == 2 * 15 * 7 * 11 == count_flops(lambda: x @ weight.t())


def test_the_summary_on_paper():
    seconds = {"ours": [2.0, 1.0, 4.0], "naive_baseline": [6.0, 5.0, 8.0], "product": [0.5, 0.25, 1.0]}
    memory = {"ours": 3 * 2**20, "naive_baseline": 7 * 2**20}
    result = summarize(seconds, units=50, unit="images", flops=3000, product_flops=1000, memory=memory)
    assert result["ratio"] == 3.0  # the median of 3, 5 and 2
    assert (result["ours_per_s"], result["naive_baseline_per_s"]) == (25.0, 50 / 6)
    assert result["peak_share"] == 3000 / 2 / 4000
    text = "\n".join(lines(result))
    assert "3.00 times as fast" in text and "3 MB" in text and "7 MB" in text
