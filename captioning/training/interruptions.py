"""Signals, full disks and machine errors during training."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from captioning.errors import Stopped, UserError
from captioning.images.reading import BadImage
from captioning.tensors import is_out_of_memory
from captioning.training.config import TrainingConfig
from captioning.utils.files import disk_full, free_space

_CAUGHT = [
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)
]  # Windows has no SIGUSR1


class Signals:
    """Catches SIGTERM, SIGUSR1 (a batch system's warning) and Ctrl-C, so that the loop can save and stop.

    The second Ctrl-C ends the process at once. Outside the main thread, where Python allows no handlers, nothing is
    caught.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._previous_handlers: dict[int, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _CAUGHT:
                self._previous_handlers[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _catch(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.caught == signal.SIGINT:
            os._exit(128 + signal.SIGINT)
        self.caught = number

    def stopped(self) -> Stopped:
        """The exception to raise once the state is on disk."""
        number = self.caught or signal.SIGTERM  # another process of the run caught one
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        # SIGUSR1 announces a SIGTERM and has its exit code
        code = 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        return Stopped(f"stopped by {name}; go on with --resume", code)


@contextlib.contextmanager
def tolerate_full_disk(
    description: str, folder: Path, bytes_needed: int, log: Callable[[str], None]
) -> Iterator[None]:
    """Log a save inside the block that fails for lack of disk space, and continue."""
    try:
        yield
    except OSError as error:
        if not disk_full(error):
            raise
        log(
            f"{description} is not saved ({error.strerror}): {folder} has {free_space(folder)} free and it takes "
            f"{bytes_needed / 1e6:.1f} MB; training goes on, and earlier saves are kept"
        )


@contextlib.contextmanager
def explain_machine_errors(config: TrainingConfig) -> Iterator[None]:
    """Turn running out of memory, a lost image and the death of a loader process into one-sentence `UserError`s."""
    size, setting = (
        f"{config.batch_size} images x {config.captions_per_image} captions",
        "training.batch_size",
    )
    if config.max_tokens:
        size, setting = f"{config.max_tokens} tokens", "training.max_tokens"
    out_of_memory = (
        f"out of memory with batches of {size}; lower {setting} (and raise training.accumulate by the same factor "
        "for the same updates), then go on with --resume"
    )
    try:
        yield
    except BadImage as error:
        raise UserError(
            f"{error}; the image was readable before: restore it, then go on with --resume"
        ) from None
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if "DataLoader worker" in text:
            raise UserError(
                f"a process that loads images ended ({text.splitlines()[0]}); often memory ran out: lower "
                "training.workers, then go on with --resume"
            ) from None
        if is_out_of_memory(error):
            raise UserError(out_of_memory) from None
        raise
