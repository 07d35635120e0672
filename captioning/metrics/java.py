"""Java programs of other authors' metrics, from the package pycocoevalcap (`pip install "captioning[java]"`).

Every failure - no Java, no package, no models, a killed or silent process - becomes one `Unavailable`, so that the
other metrics can still be computed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from captioning.metrics.base import Tokens, Unavailable

_UNMATCHED = "\U00010330"  # a letter that `tokenize` never lets through, so no reference has this word


def java_line(tokens: Tokens) -> str:
    """Tokens as one line of words, without the line ends and field separators of the programs.

    A token of white space alone becomes a word that no reference has.
    """
    words = (_UNMATCHED if token.isspace() else token for token in tokens)
    return " ".join(" ".join(words).replace("|||", " ").split())


def java_path(metric: str) -> str:
    java = shutil.which("java")
    if java is None:
        raise Unavailable(
            f"{metric}: there is no Java here; install a Java runtime (Debian: default-jre-headless) "
            "and put java on PATH"
        )
    return java


def java_package(metric: str) -> Path:
    """The folder of pycocoevalcap.

    Raises:
        Unavailable: Java or the package is missing.
    """
    java_path(metric)
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(
            f'{metric}: the package with its Java program is missing; pip install "captioning[java]"'
        )
    return Path(next(iter(spec.submodule_search_locations)))


def java_version(metric: str) -> int:
    """The major version of Java: 8 for "1.8"."""
    try:
        done = subprocess.run([java_path(metric), "-version"], capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{metric}: java -version failed ({error})") from None
    match = re.search(rb'version "(?:1\.)?(\d+)', done.stderr)
    if match is None:
        raise Unavailable(f"{metric}: java -version printed no version: {done.stderr[:200]!r}")
    return int(match[1])


class JavaProgram:
    """A running Java program, a context manager that kills it at the end; on Linux it also dies with this process.

    Its error output goes to a file, so that a full pipe cannot block it, and a timer kills it if it does not answer.
    """

    def __init__(self, metric: str, command: Sequence[str], *, folder: Path, heap: str, limit: float) -> None:
        """`command`: arguments after Java's own options; `limit`: seconds for one answer."""
        self._metric, self._limit, self._timed_out = metric, limit, False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        # without these the programs read and write numbers and text in the user's locale
        options = [f"-Xmx{heap}", "-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US"]
        try:
            self._process = subprocess.Popen(
                [java_path(metric), *options, *command],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                preexec_fn=_die_with_parent(),
            )
        except OSError as error:
            self._errors.close()
            raise Unavailable(f"{metric}: Java cannot be started ({error})") from None

    def __enter__(self) -> JavaProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):  # closing flushes, which fails after a broken pipe
                stream.close()  # type: ignore[union-attr]

    def ask(self, line: str) -> str:
        """Send a line, without its line end, and return the answer, one line."""
        assert self._process.stdin
        with self._timeout():
            try:
                self._process.stdin.write(line.encode("utf-8", "replace") + b"\n")
                self._process.stdin.flush()
            except OSError:
                raise self._failed() from None
        return self.answer()

    def answer(self) -> str:
        """The next line of output."""
        assert self._process.stdout
        with self._timeout():
            line = self._process.stdout.readline()
            if not line.endswith(b"\n"):
                raise self._failed()
        return line.decode("utf-8", "replace").strip()

    def finish(self) -> None:
        """Wait until the program ends.

        Raises:
            Unavailable: its exit code is not 0.
        """
        assert self._process.stdin and self._process.stdout
        with self._timeout():
            self._process.stdin.close()
            self._process.stdout.read()
            if self._process.wait():
                raise self._failed()

    @contextlib.contextmanager
    def _timeout(self) -> Iterator[None]:
        timer = threading.Timer(self._limit, self._kill_late)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _kill_late(self) -> None:
        self._timed_out = True
        self._process.kill()

    def _failed(self) -> Unavailable:
        if self._timed_out:
            return Unavailable(
                f"{self._metric}: ended, since Java gave no answer for {self._limit:g} seconds"
            )
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return Unavailable(f"{self._metric}: Java closed its output but keeps running")
        how = f"was ended by signal {-code}" if code < 0 else f"stopped with exit code {code}"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        errors = [line for line in lines if re.search(r"Exception|Error", line)] or [
            *filter(str.strip, lines)
        ]
        return Unavailable(f"{self._metric}: Java {how}" + (f": {errors[0].strip()[:300]}" if errors else ""))


def _die_with_parent() -> Callable[[], object] | None:
    """For `preexec_fn`: Linux ends Java when this process ends, even by SIGKILL.

    Elsewhere METEOR ends at the end of its input, and SPICE when it has finished.
    """
    if sys.platform != "linux":
        return None
    set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    return partial(ctypes.CDLL(None).prctl, set_death_signal, int(signal.SIGKILL))
