"""The benchmark of rewards on a few images, against pycocoevalcap."""

import json

import pytest

from captioning.benchmarks import reward
from captioning.training import rewards


@pytest.fixture
def small(monkeypatch):
    """The benchmark with few images and a small vocabulary."""
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr(reward, "VOCABULARY_SIZE", 97)
    monkeypatch.setattr(reward, "CHANNELS", 7)
    samples = reward.synthetic_samples(seed=3, split=31, images=5)
    monkeypatch.setattr(reward, "synthetic_samples", lambda *, seed: samples)
    return samples


def test_results(small):
    result = json.loads(json.dumps(reward.benchmark_reward(repeats=2)))
    assert (result["images"], result["samples"], result["references"], result["split"]) == (5, 5, 5, 31)
    assert result["largest_difference"] < 1e-12 and result["ratio"] > 1
    assert result["peak_share"] is None and "no matrix product" in result["peak_share_why"]
    assert result["ours_per_s"] == pytest.approx(25 / result["seconds"])
    assert 0 < result["step_share"] < 1
    text = "\n".join(reward.lines(result))
    assert f"{result['ratio']:.1f} times as fast" in text and "31 images once per run" in text


def test_contenders_that_disagree_are_refused(small, monkeypatch):
    monkeypatch.setattr(rewards, "_SIGMA", 5.0)
    small.lengths[0, 0] -= 3
    with pytest.raises(RuntimeError, match="the contenders disagree by 0"):
        reward.benchmark_reward(repeats=1)
