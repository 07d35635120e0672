"""Common frame of the benchmarks: contenders that take turns, worker processes, and peak memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from captioning.errors import UserError

NO_PYCOCOEVALCAP = UserError('pycocoevalcap is not installed; install it with pip install "captioning[java]"')


class Contenders(NamedTuple):
    """The same work done in two ways; both return the tensor in which they must agree."""

    ours: Callable[[], Any]
    naive_baseline: Callable[[], Any]


class WorkerProcess:
    """The naive baseline in a process of its own, where our allocator settings (`keep_freed_memory`) do not help it.

    Args:
        make: builds the contenders from a seed; called in the new process, so it must be picklable.
        threads: torch's CPU threads.
    """

    def __init__(self, make: Callable[[int], Contenders], seed: int, *, threads: int):
        context = multiprocessing.get_context("spawn")  # a fork would share our allocator's settings
        self._pipe, child_pipe = context.Pipe()
        arguments = (child_pipe, make, seed, threads)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        child_pipe.close()

    def __call__(self) -> tuple[float, Any]:
        """Run once; returns the seconds it took and its result as an array."""
        return self._ask("time")

    def peak_memory(self) -> int:
        return self._ask("memory")

    def close(self) -> None:
        self._pipe.send("close")
        self._process.join()

    def _ask(self, request: str) -> Any:
        try:
            self._pipe.send(request)
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError("the naive baseline's process ended; its error is above") from None


def _serve(pipe: Any, make: Callable[[int], Contenders], seed: int, threads: int) -> None:
    import torch  # not at the top: the benchmark of metrics runs without torch

    torch.set_num_threads(threads)
    work = make(seed).naive_baseline
    while (request := pipe.recv()) != "close":
        if request == "memory":
            pipe.send(peak_memory(work))
        else:
            seconds, result = timed(work)
            pipe.send((seconds, result.numpy()))


def interleave(
    contenders: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    warm_up: bool = True,
    before_round: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each contender in `repeats` rounds; in each round every contender runs once.

    Taking turns spreads other work on the machine evenly over the contenders.

    Args:
        warm_up: run every contender once before the first round.
        before_round: called at the start of each round, not timed.
    """
    if warm_up:
        for work in contenders.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        if before_round:
            before_round()
        for name, work in contenders.items():
            seconds[name].append(work()[0] if isinstance(work, WorkerProcess) else timed(work)[0])
    return seconds


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that `work` takes, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def median_ratio(seconds: Mapping[str, list[float]], name: str) -> float:
    """How many times as long as "ours" the contender `name` takes: the median over rounds."""
    pairs = zip(seconds[name], seconds["ours"], strict=True)
    return statistics.median(other / ours for other, ours in pairs)


def peak_memory(work: Callable[[], Any]) -> int:
    """Bytes by which the process's resident memory rises at most while `work` runs, sampled every millisecond.

    Returns 0 on systems other than Linux.
    """
    status = Path("/proc/self/statm")
    if not status.exists():
        return 0
    page, done, highest = 4096, threading.Event(), 0
    ctypes.CDLL(None).malloc_trim(0)  # else memory freed earlier would hide new allocations
    before = int(status.read_text().split()[1]) * page

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, int(status.read_text().split()[1]) * page)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return max(0, highest - before)
