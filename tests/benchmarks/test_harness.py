"""The frame of the benchmarks: turns, worker processes and peak memory."""

import functools

import numpy as np
import pytest
import torch

from captioning.benchmarks.harness import Contenders, WorkerProcess, interleave, median_ratio, peak_memory


def test_contenders_take_turns_after_a_warm_up():
    calls = []
    contenders = {name: functools.partial(calls.append, name) for name in "ab"}
    seconds = interleave(contenders, repeats=3, before_round=functools.partial(calls.append, "-"))
    assert "".join(calls) == "ab-ab-ab-ab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    calls.clear()
    interleave(contenders, repeats=2, warm_up=False)
    assert "".join(calls) == "abab"


def test_the_ratio_is_the_median_over_rounds():
    assert median_ratio({"ours": [1.0, 2.0, 1.0], "other": [3.0, 2.0, 7.0]}, "other") == 3.0


def make_contenders(seed):
    return Contenders(lambda: None, lambda: torch.full((3,), seed * torch.get_num_threads()))


def failing_contenders(seed):
    raise ValueError("no contenders")


def test_a_worker_process_runs_the_naive_baseline_with_its_threads():
    worker = WorkerProcess(make_contenders, 7, threads=1)
    seconds, result = worker()
    np.testing.assert_array_equal(result, [7, 7, 7])
    assert seconds > 0 and worker.peak_memory() >= 0
    assert set(interleave({"naive_baseline": worker}, repeats=2)) == {"naive_baseline"}
    worker.close()


def test_a_worker_process_that_fails_is_an_error():
    worker = WorkerProcess(failing_contenders, 7, threads=1)
    with pytest.raises(RuntimeError, match="process ended"):
        worker()


def test_peak_memory_is_what_the_work_allocates():
    size = 50 * 2**20
    assert size * 0.9 < peak_memory(lambda: np.ones(size, np.uint8)) < size * 1.5
