"""Errors with one-sentence messages for the user, and the exit codes of the commands."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

USER_ERROR, DIVERGED = 2, 3
"""Exit codes: the input was refused; the training diverged."""

MAX_LENGTH = 1000
"""Characters of a `UserError`."""


def escape_unprintable(text: str) -> str:
    """The text as one line of output: line ends, control characters, lone surrogates become escapes such as `\\n`."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "replace").decode()
        for character in text
    )


class UserError(Exception):
    """An error that the user can mend: one sentence that names the file, the value and the next step.

    Commands print it without a traceback and exit with `code`. Unprintable characters, which come from the user's
    files, are escaped, and the middle of a text over `MAX_LENGTH` is left out.
    """

    code = USER_ERROR

    def __str__(self) -> str:
        text = escape_unprintable(super().__str__())
        return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 200]} ... {text[-200:]}"


class Diverged(UserError):
    """The training's gradients stayed non-finite."""

    code = DIVERGED


class Stopped(Exception):
    """A signal ended the work, and everything needed to resume is on disk; the command exits with `code`."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Note(UserWarning):
    """A decision about the user's data that they should see; commands print it as one line on stderr."""


@contextlib.contextmanager
def notes_to(log: Callable[[str], None]) -> Iterator[None]:
    """Pass the notes given in the block to `log`, one line each; other warnings are shown as usual."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", Note)
        show = warnings.showwarning

        def show_note(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, Note):
                log(f"note: {message}")
            else:
                show(message, category, *place, **more)

        warnings.showwarning = show_note  # restored by catch_warnings
        yield


class _Output(io.FileIO):
    """Standard output or error; what is written after its reader closed it is dropped, so that the work goes on."""

    reader_left = False

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EINVAL):  # the latter on Windows
                raise
            self.reader_left = True
            return len(data)


def reader_left() -> bool:
    """Whether the reader of standard output (head, less) has closed it while `run_command` runs a command."""
    return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "reader_left", False)


@contextlib.contextmanager
def _outputs_may_close() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _that_may_close(sys.stdout, 1), _that_may_close(sys.stderr, 2)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # a full disk, which was reported
                stream.flush()
        sys.stdout, sys.stderr = before


def _that_may_close(stream: Any, number: int) -> Any:
    """The same stream with an `_Output` below it, unless it is a terminal or not the process's own."""
    if stream is None:  # the shell's >&-
        return open(os.devnull, "w", encoding="utf-8")
    try:
        if stream.fileno() != number or stream.isatty():
            return stream
    except (OSError, AttributeError):
        return stream
    stream.flush()
    buffer = io.BufferedWriter(_Output(number, "wb", closefd=False))
    options = {"errors": stream.errors, "line_buffering": stream.line_buffering}
    return io.TextIOWrapper(buffer, encoding=stream.encoding, **options)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's `main` and leave the process with its exit code.

    A `UserError` becomes one line on stderr and its exit code (2; 3 for `Diverged`), and so do a file that the system
    refuses to read or write and a lack of memory (2); any other exception becomes one line and exit code 1. With
    `--debug` on the command line the traceback is printed as well. A command whose standard output is closed early
    writes its files all the same.
    """
    with _outputs_may_close():
        code = _exit_code(main)
        if reader_left():
            print(
                "standard output was closed before the end; the work was done all the same", file=sys.stderr
            )
    sys.exit(code)


def _exit_code(main: Callable[[], int | None]) -> int:
    debug = "--debug" in sys.argv[1:]
    try:
        with notes_to(lambda line: print(line, file=sys.stderr)):
            code = main() or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        code = 130
    except Stopped as stop:
        print(stop, file=sys.stderr)
        code = stop.code
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, code = explain(error)
        print(f"error: {message}", file=sys.stderr)
    return code


def explain(error: Exception) -> tuple[str, int]:
    """One line for an exception, and the command's exit code."""
    if isinstance(error, UserError):
        return str(error), error.code
    reason = " ".join(str(error).split("\n")[0].split())  # torch appends the frames of its C++ stack
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or reason}; check the path and its permissions", USER_ERROR
    if isinstance(error, MemoryError):
        return f"out of memory ({reason or 'no details'}); use smaller sizes", USER_ERROR
    return f"{type(error).__name__}: {reason} (--debug shows where)", 1
