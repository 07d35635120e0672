"""What may befall a run: signals, a full disk, a loader process that dies, memory that runs out. Knows no model."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import torch

from captioning.errors import Stopped, UserError


class Signals:
    """Notes SIGTERM, SIGUSR1 (a batch system's warning) and Ctrl-C; the loop saves and ends at its next step.

    The second Ctrl-C ends the process at once. Only the main thread can listen; elsewhere nothing is noted.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.caught == signal.SIGINT:
            os._exit(128 + signal.SIGINT)
        self.caught = number

    def stopped(self) -> Stopped:
        """What to raise once the state is on disk."""
        number = self.caught or signal.SIGTERM  # another process of the run was told
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        # SIGUSR1 is a warning of the SIGTERM to come, and ends as that does
        code = 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        return Stopped(f"stopped by {name}; go on with --resume", code)


@contextlib.contextmanager
def disk_may_fill(
    what: str, folder: Path, needed: Callable[[], int], log: Callable[[str], None]
) -> Iterator[None]:
    """A save inside the block that fails for lack of space is told in one line, and the run goes on."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(_existing(folder)).free
        log(
            f"{what} is not saved: {folder} has {free / 1e6:.1f} MB free and it takes {needed() / 1e6:.1f} MB; "
            "training goes on, what was saved before is kept"
        )


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


@contextlib.contextmanager
def explained(*, images: int, captions: int, tokens: int | None) -> Iterator[None]:
    """Errors of the machine as one sentence for the user."""
    size = f"{tokens} tokens" if tokens else f"{images} images x {captions} captions"
    setting = "training.max_tokens" if tokens else "training.batch_size"
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise UserError(
            f"out of memory with batches of {size}; lower {setting} "
            "(and raise training.accumulate as much, for the same updates), then go on with --resume"
        ) from None
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" in text:
            raise UserError(
                f"a process that loads images ended ({text.splitlines()[0]}); often memory ran out: lower "
                "training.workers, then go on with --resume"
            ) from None
        if "allocate memory" in text or "out of memory" in text:
            raise UserError(
                f"out of memory with batches of {size}; lower {setting}, then go on with --resume"
            ) from None
        raise
