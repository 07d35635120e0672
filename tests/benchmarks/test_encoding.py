"""The benchmark of encoding: the plain loop gives the same features, and what it cannot compare is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from captioning.benchmarks import encoding, torch_harness
from captioning.benchmarks.encoding import benchmark_encoder, lines, write_images
from captioning.benchmarks.harness import timed
from captioning.errors import UserError
from captioning.models.encoders import SmallCNNConfig, TimmConfig, TorchvisionConfig


@pytest.mark.parametrize(
    "config",
    [
        TorchvisionConfig(name="squeezenet1_1"),
        TimmConfig(name="test_resnet"),
        TimmConfig(name="test_vit"),
        TimmConfig(name="swin_tiny_patch4_window7_224"),
    ],
    ids=lambda config: config.name,
)
@pytest.mark.parametrize("from_files", [True, False], ids=["files", "network"])
def test_the_plain_loop_gives_the_same_features(config, from_files: bool, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH", 2)
    files = write_images(tmp_path, images=3, seed=1) if from_files else None
    contenders = encoding._contenders(config, files, 3, 7)
    ours, plain = contenders.ours(), contenders.naive_baseline()
    assert ours.shape == plain.shape and len(ours) == 3
    torch.testing.assert_close(ours / plain.abs().max(), plain / plain.abs().max(), atol=1e-3, rtol=0)
    assert plain.std(0).max() > 1e-6 * plain.abs().max()  # images differ


class SameProcess:
    """In place of the worker process, which takes seconds to start."""

    def __init__(self, make, seed: int):
        self.work = make(seed).naive_baseline

    def __call__(self):
        seconds, result = timed(self.work)
        return seconds, result.numpy()

    def peak_memory(self) -> int:
        return 0

    def close(self) -> None:
        pass


def test_result_and_table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoding, "start_worker", SameProcess)
    monkeypatch.setattr(torch_harness, "large_product", partial(torch_harness.large_product, 64))
    result = benchmark_encoder(TimmConfig(name="test_resnet"), repeats=1, images=3)
    for part in ("files", "network"):
        assert result[part]["largest_difference"] < 1e-3 and result[part]["unit"] == "images"
        assert result[part]["gflop"] == result["network"]["gflop"] > 0
    text = "\n".join(lines({"encoders": [result, result]}))
    assert text.count("timm test_resnet") == 2 and f"{result['network']['ratio']:.2f}" in text


def test_contenders_that_disagree_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoding, "start_worker", SameProcess)
    monkeypatch.setattr(torch_harness, "large_product", partial(torch_harness.large_product, 64))
    monkeypatch.setattr(encoding, "normalize", lambda pixels, preprocessing: pixels / 128)
    with pytest.raises(RuntimeError, match="the contenders disagree by"):
        benchmark_encoder(TimmConfig(name="test_resnet"), repeats=1, images=3)


def test_encoders_without_a_plain_counterpart_are_refused():
    for config, message in (
        (SmallCNNConfig(), "small has no plain counterpart"),
        (TimmConfig(name="test_resnet", layer=1), "only the last maps"),
        (TorchvisionConfig(name="resnet18", grid=3), "only the last maps"),
    ):
        with pytest.raises(UserError, match=message):
            benchmark_encoder(config)
