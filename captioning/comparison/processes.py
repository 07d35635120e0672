"""Running commands as child processes, several at a time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from captioning.utils.progress import progress

Command = Callable[..., tuple[int, str]]
"""(name, arguments...) -> exit code and last line on stderr of `captioning name arguments...`."""

PACKAGE_FOLDER = Path(__file__).resolve().parents[2]


def child_command(jobs: int = 1) -> Command:
    """A `Command` that runs in a child process. On Linux it ends with its parent; a run's lock protects it anyway.

    With several `jobs` every child gets its share of the cores and prints nothing.
    """
    environment = {**os.environ, **_import_path()}
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(threads_per_job(jobs))

    def run(name: str, *arguments: str) -> tuple[int, str]:
        sys.stdout.flush()
        child = subprocess.Popen(
            [sys.executable, "-m", "captioning", name, *arguments],
            stdout=None if jobs == 1 else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            env=environment,
        )
        try:
            return _wait(child, echo=jobs == 1)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()

    return run


def _import_path() -> dict[str, str]:
    """Environment variables with which a child imports this very package, whatever its working directory."""
    variables = {"PYTHONSAFEPATH": "1"}  # a folder named captioning in the working directory must not win
    if PACKAGE_FOLDER.name not in ("site-packages", "dist-packages"):  # else installed, and found anyway
        variables["PYTHONPATH"] = os.pathsep.join([str(PACKAGE_FOLDER), os.environ.get("PYTHONPATH", "")])
    return variables


def _wait(child: subprocess.Popen[bytes], *, echo: bool) -> tuple[int, str]:
    """The child's exit code and its last line on stderr."""
    tail = b""
    assert child.stderr is not None
    while block := child.stderr.read1(1 << 16):  # type: ignore[attr-defined]
        if echo:
            os.write(2, block)  # as it comes: progress bars are for the user
        tail = (tail + block)[-4000:]
    lines = tail.decode("utf-8", "replace").replace("\r", "\n").split("\n")
    return child.wait(), next((line for line in reversed(lines) if line.strip()), "")


def _end_with_parent() -> None:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def default_jobs() -> int:
    """One training at a time on a GPU; on a CPU one per core, at most 4: small models use one core best."""
    return 1 if torch.cuda.is_available() else min(4, torch.get_num_threads())


def threads_per_job(jobs: int) -> int:
    return max(1, torch.get_num_threads() // jobs)


def run_parallel(jobs: int, tasks: Sequence[Callable[[], None]], *, description: str, unit: str) -> None:
    """Run the tasks in their order, `jobs` at a time.

    After an error no further task begins; it is raised when the running ones have ended.
    """
    if jobs == 1:
        for task in tasks:
            task()
        return
    failed = threading.Event()

    def guarded(task: Callable[[], None]) -> None:
        if failed.is_set():
            return
        try:
            task()
        except BaseException:
            failed.set()
            raise

    bar: Any = progress(total=len(tasks), desc=description, unit=unit, delay=2)
    with ThreadPoolExecutor(jobs) as pool, bar:
        for future in as_completed([pool.submit(guarded, task) for task in tasks]):
            try:
                future.result()
            except BaseException:
                failed.set()  # Ctrl-C arrives here, not in a worker thread
                raise
            bar.update()
