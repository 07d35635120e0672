"""METEOR 1.5 and SPICE 1.0 by their authors' Java programs. The only place that runs Java; knows no files of ours.

The programs come with the package pycocoevalcap (`pip install "captioning[java]"`). Whatever keeps one from
answering - no Java, no package, no models, killed, silent - becomes one `Unavailable`, so that a caller can go
on with the metrics that need no Java.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
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
from typing import IO, NamedTuple

import numpy as np
from tqdm import tqdm

from captioning.metrics.meteor import STATISTICS, summable

References = Sequence[Sequence[Sequence[str]]]
"""For each image its references, each a sequence of tokens."""

_UNMATCHED = "\U00010330"  # a letter beyond those `tokenize` lets through: no reference has this word
_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_LAST_JAVASCRIPT = 14  # SPICE formats its results by Java's own JavaScript engine, which Java 15 dropped


class Unavailable(Exception):
    """One sentence: which metric cannot be had, why, and what to do."""


class JavaScores(NamedTuple):
    """One metric, 0..1: of the whole, and of each image."""

    corpus: float
    per_image: np.ndarray  # (I,) float64
    statistics: np.ndarray | None = (
        None  # (I, meteor.STATISTICS): what METEOR's corpus score is the score of, summed
    )


def meteor(
    references: References, candidates: Sequence[Sequence[str]], *, heap: str = "2G", limit: float = 300
) -> JavaScores:
    """METEOR 1.5 (Denkowski and Lavie, 2014), English, as coco-caption calls it.

    The corpus score is METEOR's of the statistics of all images summed, not the mean of the images' scores.

    Args:
        references: tokens of each image's references, at least one.
        candidates: tokens of each image's caption. A token of white space alone counts as a word that no
            reference has.
        heap: Java's, in Java's notation; it reads a table of paraphrases that needs about 1G.
        limit: seconds without an answer after which it is ended.

    Raises:
        Unavailable: no Java, no pycocoevalcap, or Java failed, was killed or stayed silent.
        ValueError: no images, an image without references, not one candidate an image.
    """
    _check(references, candidates)
    folder = _package("METEOR") / "meteor"
    command = ["-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    with _Program("METEOR", command, folder=folder, heap=heap, limit=limit) as program:
        statistics = []
        rows = zip(references, candidates, strict=True)
        bar = tqdm(
            rows, desc="METEOR", total=len(candidates), unit="image", leave=False, disable=None, delay=2
        )
        for own, candidate in bar:
            fields = ["SCORE", *map(_text, own), _text(candidate)]
            answer = program.ask(" ||| ".join(fields))
            if len(answer.split()) != STATISTICS:
                raise Unavailable(f"METEOR: {STATISTICS} numbers expected of Java, got {answer[:200]!r}")
            statistics.append(answer)
        each = [float(program.ask(" ||| ".join(["EVAL", *statistics])))]
        each += [float(program.answer()) for _ in statistics]
    numbers = np.array([line.split() for line in statistics], dtype=float)
    return JavaScores(each[-1], np.array(each[:-1]), summable(numbers))


def spice(
    references: References,
    candidates: Sequence[Sequence[str]],
    *,
    heap: str = "4G",
    limit: float | None = None,
) -> JavaScores:
    """SPICE (Anderson et al., 2016) as coco-caption calls it; the corpus score is the mean over images.

    It needs, beside pycocoevalcap, Stanford's CoreNLP 3.6.0 with its models, and Java 8 to 14.

    Args:
        references: as `meteor`'s.
        candidates: as `meteor`'s.
        heap: Java's, in Java's notation.
        limit: seconds after which it is ended; by default ten minutes and a second a caption, references too.

    Raises:
        Unavailable: as `meteor`; the models are missing; this Java is too new.
        ValueError: as `meteor`.
    """
    _check(references, candidates)
    folder = _package("SPICE") / "spice"
    _check_spice(folder)
    entries = [
        {"image_id": row, "test": _text(candidate), "refs": [*map(_text, own)]}
        for row, (own, candidate) in enumerate(zip(references, candidates, strict=True))
    ]
    if limit is None:
        limit = 600 + sum(1 + len(own) for own in references)
    with tempfile.TemporaryDirectory() as temporary:
        source, result = Path(temporary, "captions.json"), Path(temporary, "scores.json")
        source.write_text(json.dumps(entries))  # ASCII: Java reads it in its own idea of an encoding
        command = ["-jar", "spice-1.0.jar", str(source), "-out", str(result), "-subset", "-silent"]
        with _Program("SPICE", command, folder=folder, heap=heap, limit=limit) as program:
            program.finish()
        try:
            found = {
                entry["image_id"]: entry["scores"]["All"]["f"] for entry in json.loads(result.read_text())
            }
            each = np.array([found[row] for row in range(len(entries))], dtype=float)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unavailable(
                f"SPICE: its results cannot be read ({type(error).__name__}: {error})"
            ) from None
    return JavaScores(float(each.mean()), each)


def _check(references: References, candidates: Sequence[Sequence[str]]) -> None:
    if not candidates or len(references) != len(candidates):
        raise ValueError(f"{len(candidates)} candidates for {len(references)} images")
    if bare := [row for row, own in enumerate(references) if not own]:
        raise ValueError(f"images without references: rows {bare[:5]}")


def _text(tokens: Sequence[str]) -> str:
    """One line of words; what the programs would take for a line's or a field's end is a space."""
    words = (_UNMATCHED if token.isspace() else token for token in tokens)
    return " ".join(" ".join(words).replace("|||", " ").split())


def _java(metric: str) -> str:
    java = shutil.which("java")
    if java is None:
        raise Unavailable(
            f"{metric}: there is no Java here; install a Java runtime (Debian: default-jre-headless) "
            "and put java on PATH"
        )
    return java


def _package(metric: str) -> Path:
    _java(metric)
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(
            f'{metric}: the package with its Java program is missing; pip install "captioning[java]"'
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _check_spice(folder: Path) -> None:
    """Raises Unavailable with all that is missing at once: the models take long to fetch."""
    missing = []
    if absent := [name for name in _MODELS if not (folder / "lib" / name).is_file()]:
        missing.append(
            f"{' and '.join(absent)} in {folder / 'lib'} (they are in stanford-corenlp-full-2015-12-09.zip of "
            "https://nlp.stanford.edu/software/)"
        )
    version = _java_version("SPICE")
    if version > _LAST_JAVASCRIPT:
        missing.append(f"a Java from 8 to {_LAST_JAVASCRIPT} first on PATH (this one is {version})")
    if missing:
        raise Unavailable(f"SPICE: needs {', and '.join(missing)}")


def _java_version(metric: str) -> int:
    """8 for what calls itself 1.8."""
    try:
        done = subprocess.run([_java(metric), "-version"], capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{metric}: java -version failed ({error})") from None
    match = re.search(rb'version "(?:1\.)?(\d+)', done.stderr)
    if match is None:
        raise Unavailable(f"{metric}: java -version gave no version: {done.stderr[:200]!r}")
    return int(match[1])


class _Program:
    """A Java program at work; used in a `with`, at whose end it is gone. Also gone when this process dies.

    Its error output goes to a file, so that no full pipe can stop it, and a clock ends it when it is silent.
    """

    def __init__(self, metric: str, command: Sequence[str], *, folder: Path, heap: str, limit: float) -> None:
        """`command`: what comes after Java's own options; `limit`: seconds for one answer."""
        self._metric, self._limit, self._late = metric, limit, False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        # the programs write and read numbers and text by the user's locale unless told otherwise
        options = [f"-Xmx{heap}", "-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US"]
        try:
            self._process = subprocess.Popen(
                [_java(metric), *options, *command],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                preexec_fn=_dying_with_parent(),
            )
        except OSError as error:
            self._errors.close()
            raise Unavailable(f"{metric}: Java cannot be started ({error})") from None

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):  # what could not be written is still in the buffer
                stream.close()  # type: ignore[union-attr]

    def ask(self, line: str) -> str:
        """Send a line, which holds no line end, and wait for a line."""
        assert self._process.stdin
        with self._clock():
            try:
                self._process.stdin.write(line.encode("utf-8", "replace") + b"\n")
                self._process.stdin.flush()
            except OSError:
                raise self._failed() from None
        return self.answer()

    def answer(self) -> str:
        """Wait for one more line."""
        assert self._process.stdout
        with self._clock():
            line = self._process.stdout.readline()
            if not line.endswith(b"\n"):
                raise self._failed()
        return line.decode("utf-8", "replace").strip()

    def finish(self) -> None:
        """Wait for its end, which must be a good one."""
        assert self._process.stdin and self._process.stdout
        with self._clock():
            self._process.stdin.close()
            self._process.stdout.read()
            if self._process.wait():
                raise self._failed()

    @contextlib.contextmanager
    def _clock(self) -> Iterator[None]:
        clock = threading.Timer(self._limit, self._end_late)
        clock.daemon = True
        clock.start()
        try:
            yield
        finally:
            clock.cancel()

    def _end_late(self) -> None:
        self._late = True
        self._process.kill()

    def _failed(self) -> Unavailable:
        if self._late:
            return Unavailable(
                f"{self._metric}: ended, since Java gave no answer for {self._limit:g} seconds"
            )
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return Unavailable(f"{self._metric}: Java closed its output and goes on")
        how = f"was ended by signal {-code}" if code < 0 else f"stopped with exit code {code}"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        told = [line for line in lines if re.search(r"Exception|Error", line)] or [*filter(str.strip, lines)]
        return Unavailable(f"{self._metric}: Java {how}" + (f": {told[0].strip()[:300]}" if told else ""))


def _dying_with_parent() -> Callable[[], object] | None:
    """What Linux is told in the child before Java starts: end it when its parent is gone, even by SIGKILL.

    Elsewhere METEOR ends at the end of its input, and SPICE when it is done.
    """
    if sys.platform != "linux":
        return None
    set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    return partial(ctypes.CDLL(None).prctl, set_death_signal, int(signal.SIGKILL))
