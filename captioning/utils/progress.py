"""Progress of long loops: a bar in a terminal, log lines now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar, overload

from tqdm import tqdm

Item = TypeVar("Item")
Log = Callable[[str], None]

SECONDS_BETWEEN_LINES = 60.0
SECONDS_BETWEEN_FIRST_LINES = 20.0
"""Applies to the first five minutes of a loop."""

FIRST_SECONDS = 300.0


@overload
def progress(iterable: Iterable[Item], **options: Any) -> tqdm[Item] | ProgressLines[Item]: ...
@overload
def progress(iterable: None = None, **options: Any) -> tqdm[Any] | ProgressLines[Any]: ...
def progress(  # type: ignore[misc]  # the overloads give the item type only
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = "item",
    log: Log | None = None,
    delay: float = 0.0,
    initial: int = 0,
    leave: bool = False,
    unit_scale: bool = False,
    disable: bool = False,
) -> tqdm[Any] | ProgressLines[Any]:
    """Show the progress of a loop over `iterable`, or of `update()` calls inside a `with` block.

    Args:
        total: number of steps; taken from `iterable` where it has a length.
        unit: singular noun for one step ("image").
        log: receives the log lines; by default they go to stderr with a timestamp.
        delay: seconds before anything is shown, so that short loops print nothing.
        initial: steps that an earlier run has done.
        leave: whether the bar stays on the screen when the loop has ended.
        unit_scale: whether counts are printed as 1.2M.
        disable: show nothing.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    if disable or sys.stderr.isatty():
        return tqdm(  # type: ignore[return-value]
            iterable, total=total, desc=desc, unit=unit, unit_scale=unit_scale, initial=initial, leave=leave,
            delay=delay, disable=disable,
        )  # fmt: skip
    return ProgressLines(
        iterable, total=total, desc=desc, unit=unit, log=log or print_to_stderr, delay=delay, initial=initial,
        unit_scale=unit_scale,
    )  # fmt: skip


class ProgressLines(Generic[Item]):
    """The part of tqdm's interface that this package uses, with log lines in place of the bar.

    The first line is logged at once unless `delay` is set, then at most one line every 20 seconds, and one
    a minute after five minutes.
    """

    def __init__(
        self,
        iterable: Iterable[Item] | None = None,
        *,
        total: int | None,
        desc: str,
        unit: str,
        log: Log,
        delay: float = 0.0,
        initial: int = 0,
        unit_scale: bool = False,
    ):
        self.iterable, self.total, self.desc, self.unit, self.log = iterable, total, desc, unit, log
        self.n: float = initial
        self.initial = initial
        self.unit_scale, self.postfix = unit_scale, ""
        self.started = self.last_line = time.monotonic()
        if not delay:
            log(f"{desc}: {self._count()}")

    def __iter__(self) -> Iterator[Item]:
        for item in self.iterable or ():
            yield item
            self.update()

    def __enter__(self) -> ProgressLines[Item]:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def update(self, n: float | None = 1) -> None:
        self.n += n or 0
        self.refresh()

    def refresh(self) -> None:
        """Log a line if the last one is old enough."""
        now = time.monotonic()
        first = now - self.started < FIRST_SECONDS
        if now - self.last_line >= (SECONDS_BETWEEN_FIRST_LINES if first else SECONDS_BETWEEN_LINES):
            self.last_line = now
            rate = (self.n - self.initial) / (now - self.started)
            left = f"{duration((self.total - self.n) / rate)} left" if self.total and rate else ""
            per_second = f"{self._number(rate) if rate >= 10 else f'{rate:.2g}'} {self.unit}s/s"
            self.log(
                f"{self.desc}: " + ", ".join(filter(None, (self._count(), self.postfix, per_second, left)))
            )

    def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
        self.postfix = text

    def write(self, text: str, **_: Any) -> None:
        self.log(text)

    def close(self) -> None:
        """Nothing to close; tqdm has it."""

    def _count(self) -> str:
        total = f"/{self._number(self.total)}" if self.total is not None else ""
        return f"{self.unit} {self._number(self.n)}{total}"

    def _number(self, value: float) -> str:
        return tqdm.format_sizeof(value) if self.unit_scale else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """A time span for people: "40 s", "12 min" or "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def timestamped(line: str) -> str:
    """The line behind the local date and time."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}"


def print_line(line: str) -> None:
    """Print to stdout at once, with a timestamp where stdout is no terminal."""
    print(line if sys.stdout.isatty() else timestamped(line), flush=True)


def print_to_stderr(line: str) -> None:
    """Print to stderr at once, with a timestamp."""
    print(timestamped(line), file=sys.stderr, flush=True)
