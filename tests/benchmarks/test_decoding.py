"""The benchmark of decoding: memory ratios, and contenders that disagree."""

import pytest

from captioning.benchmarks.decoding import check_same_captions, memory_ratios


def test_memory_ratios_on_paper():
    memory = {"ours": 39, "ours_greedy": 23, "beam_logits": 7, "weights": 10}
    ratios = {"memory_ratio": 49 / 40, "memory_ratio_without_weights": 1.3}
    assert memory_ratios(memory) == pytest.approx(ratios)


def test_contenders_that_find_other_captions_are_refused():
    check_same_captions(0.98)
    with pytest.raises(RuntimeError, match="only 88 % of the captions are the same"):
        check_same_captions(0.88)
