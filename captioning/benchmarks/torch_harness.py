"""Benchmarks of torch code: throughput, FLOPs as a share of the machine's peak, and memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from captioning.benchmarks.harness import Contenders, WorkerProcess, interleave, median_ratio, peak_memory
from captioning.models.cost import counting


def large_product(size: int = 2048) -> tuple[Callable[[], Any], int]:
    """A large float32 matrix product, whose rate counts as the machine's peak, and its FLOPs."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    return lambda: left @ right, 2 * size**3


def count_flops(work: Callable[[], Any]) -> int:
    """FLOPs of the matrix products in `work`, counted as in `models.cost`."""
    with counting() as counter:
        work()
    return counter.get_total_flops()


def start_worker(make: Callable[[int], Contenders], seed: int) -> WorkerProcess:
    """A worker process with as many threads as this one."""
    return WorkerProcess(make, seed, threads=torch.get_num_threads())


def compare_with_baseline(
    contenders: Contenders, worker: WorkerProcess, *, repeats: int, units: int, unit: str
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The benchmark's result, and the tensors that ours and the naive baseline return in their first run.

    Args:
        worker: runs the naive baseline; closed at the end.
        units: number of captions or images (`unit`) in one run.
    """
    outputs = contenders.ours().numpy(), worker()[1]  # of the first run: training changes the weights
    flops = count_flops(contenders.ours)
    product, product_flops = large_product()
    seconds = interleave(
        {"ours": contenders.ours, "naive_baseline": worker, "product": product}, repeats=repeats
    )
    memory = {"ours": peak_memory(contenders.ours), "naive_baseline": worker.peak_memory()}
    worker.close()
    result = summarize(
        seconds, units=units, unit=unit, flops=flops, product_flops=product_flops, memory=memory
    )
    return result, *outputs


def summarize(
    seconds: Mapping[str, list[float]],
    *,
    units: int,
    unit: str,
    flops: int,
    product_flops: int,
    memory: Mapping[str, int],
    baseline: str = "naive_baseline",
) -> dict[str, Any]:
    """The printed fields, from the seconds of "ours", `baseline` and "product" (see `interleave`)."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    peak = product_flops / min(seconds["product"])
    return {
        "ratio": median_ratio(seconds, baseline),
        "ours_per_s": units / medians["ours"],
        f"{baseline}_per_s": units / medians[baseline],
        "unit": unit,
        "peak_share": flops / medians["ours"] / peak,
        "peak_gflops": peak / 1e9,
        "gflop": flops / 1e9,
        "memory_mb": {name: round(value / 2**20, 1) for name, value in memory.items()},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeats": len(seconds["ours"]),
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """The result as printed lines."""
    unit, memory = result["unit"], result["memory_mb"]
    baseline = "huggingface" if "huggingface" in memory else "naive_baseline"
    rows = [
        f"{name.replace('_', ' '):15} {result[f'{name}_per_s']:8.1f} {unit}/s   {memory[name]:.0f} MB above the model's"
        for name in ("ours", baseline)
    ]
    return [
        *rows,
        f"{result['ratio']:.2f} times as fast as the baseline, at {100 * result['peak_share']:.0f} % of this machine's",
        f"matrix product ({result['peak_gflops']:.0f} GFLOP/s, {result['threads']} threads)",
    ]
