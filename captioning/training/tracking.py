"""Tracking of a run: metrics.jsonl is the record; wandb shows the same numbers from a process of its own.

wandb cannot disturb the run, whether it raises, hangs, is killed, or has no key or network: the tracker appends events
to a file, and `wandb_process.py` reads it. The end of a run waits at most 2 seconds for it. After that the process
finishes by itself (after a run of a few seconds, on a slow disk, during an upload), for at most ten minutes.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

from captioning.errors import UserError
from captioning.images.reading import BadImage, load_image
from captioning.utils.files import atomic_write
from captioning.utils.parsing import parse_json

_PHOTO_SIDE = 512  # longest side, in pixels, of the images that wandb shows
_FINISH_SECONDS = 2.0  # the longest that the end of a run waits for wandb
_PROCESS = Path(__file__).with_name("wandb_process.py")
# runs the file without this package, and without modules from the working folder
_PROGRAM = "import runpy, sys; sys.path.pop(0); runpy.run_path(sys.argv.pop(1), run_name='__main__')"

Cell = str | float | int | Path
Best = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """wandb settings of a run; metrics.jsonl is written in any case.

    The environment variable WANDB_MODE, if it is one of the modes, takes precedence over `mode`, as usual with wandb.
    """

    __pydantic_config__ = {"extra": "forbid"}

    mode: Literal["online", "offline", "disabled"] = "offline"
    project: str = "captioning"
    group: str | None = None  # runs that belong together, such as the seeds of one experiment
    name: str | None = None  # None: the name of the run's folder
    tags: tuple[str, ...] = ()


class Tracker:
    """Writes metrics.jsonl and timings.jsonl into `folder`, and sends the same to wandb. For the first process."""

    def __init__(
        self,
        config: TrackingConfig,
        folder: str | os.PathLike[str],
        *,
        run_config: Mapping[str, Any],
        resume_step: int | None = None,
    ) -> None:
        """Start a new metrics.jsonl or, with `resume_step`, continue after its lines up to that step.

        Args:
            run_config: the experiment's settings as plain values, for wandb.
            resume_step: the step of the checkpoint that is resumed.
        """
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ranges: dict[str, tuple[float, float]] = {}  # smallest and largest value of each name
        self._resume_step = resume_step
        self._metrics = LineFile(self.folder / "metrics.jsonl", self._lines_to_keep("metrics.jsonl"))
        self._timings: LineFile | None = None
        mode = os.environ.get("WANDB_MODE", config.mode)
        self._wandb: WandbProcess | None = None
        if mode in ("online", "offline"):
            settings = {**asdict(config), "mode": mode, "name": config.name or self.folder.name}
            run_id = _wandb_run_id(self.folder, resume=resume_step is not None)
            self._wandb = WandbProcess(self.folder, {**settings, "id": run_id, "run_config": run_config})

    def _lines_to_keep(self, name: str) -> bytes:
        """The lines of a file up to the resumed step, without a line that a crash cut off."""
        path, lines = self.folder / name, b""
        if self._resume_step is None or not path.exists():
            return lines
        for line in path.read_bytes().splitlines(keepends=True):
            values = parse_metrics_line(line.decode(errors="replace"))
            if values and line.endswith(b"\n") and values["step"] <= self._resume_step:
                lines += line
                self._update_ranges({name: value for name, value in values.items() if value is not None})
        return lines

    def _update_ranges(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):
                low, high = self._ranges.get(name, (value, value))
                self._ranges[name] = (min(low, value), max(high, value))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write one line with the step and its values in the given order; non-finite values become null."""
        self._write(self._metrics, values, step)

    def log_timings(self, values: Mapping[str, float], step: int) -> None:
        """As `log`, into timings.jsonl: seconds and memory, which differ between two runs with equal metrics."""
        if self._timings is None:
            self._timings = LineFile(self.folder / "timings.jsonl", self._lines_to_keep("timings.jsonl"))
        self._write(self._timings, values, step)

    def _write(self, lines: LineFile, values: Mapping[str, float], step: int) -> None:
        if "step" in values:
            raise ValueError("'step' is reserved for the step; rename the value")
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        lines.add(json.dumps({"step": step, **finite}, ensure_ascii=False))
        self._update_ranges(numbers)
        self._send(kind="log", values={"step": step, **numbers})

    def summary(self, name: str, value: float, best: Best | None = None) -> None:
        """Set a number of the whole run; with `best`, the largest or smallest value given or logged so far."""
        if best is not None:
            self._update_ranges({name: float(value)})
            low, high = self._ranges.get(name, (value, value))
            value = high if best == "max" else low
        self._send(kind="summary", name=name, value=float(value), best=best)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """Show rows of text, numbers and images (`Path`s) in wandb; an image that cannot be read is left out."""
        if not self._wandb:
            return
        cells = [[_read_photo(cell) if isinstance(cell, Path) else cell for cell in row] for row in rows]
        self._send(kind="table", name=name, columns=list(columns), rows=cells, step=step)

    def finish(self, exit_code: int = 0) -> None:
        """Close the files, and wait at most 2 seconds for wandb, which then finishes by itself."""
        self._metrics.close()
        if self._timings:
            self._timings.close()
        if self._wandb:
            self._wandb.finish(exit_code)
            self._wandb = None

    def _send(self, **event: Any) -> None:
        if self._wandb:
            self._wandb.send(event)


def _read_photo(path: Path) -> dict[str, str] | None:
    """A small copy of an image for the file of events: {"png": base64}."""
    try:
        image = load_image(path)
    except BadImage:
        return None
    image.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE))
    content = io.BytesIO()
    image.save(content, format="PNG")
    return {"png": base64.b64encode(content.getvalue()).decode("ascii")}


class LineFile:
    """A file whose lines are complete on disk when `add` returns; a full disk only delays them."""

    def __init__(self, path: Path, content: bytes = b"") -> None:
        self._path, self._content = path, content
        self._file: BinaryIO | None = None
        self._size = len(content)
        self._pending: list[bytes] = []
        self._told = self._closed = False
        self._flush()

    def add(self, line: str) -> None:
        self._pending.append(line.encode("utf-8", "surrogatepass") + b"\n")
        self._flush()

    def _flush(self) -> None:
        if self._closed:
            return
        data = b"".join(self._pending)
        try:
            if self._file is None:
                with atomic_write(self._path) as part:
                    part.write_bytes(self._content)
                self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
            if self._file.write(data) != len(data):
                raise OSError("the disk took only a part of it")
        except OSError as error:
            if self._file:
                with contextlib.suppress(OSError):
                    self._file.truncate(self._size)  # no partial line stays
            if not self._told:
                _print(
                    f"{self._path}: cannot be written ({error}); free some space, its lines wait in memory"
                )
            self._told = True
            return
        self._size += len(data)
        self._pending.clear()
        self._told = False

    def close(self) -> None:
        if self._pending:
            self._flush()
        if self._pending:
            _print(f"{self._path}: its last {len(self._pending)} lines could not be written")
        if self._file:
            with contextlib.suppress(OSError):
                os.fsync(self._file.fileno())
            self._file.close()
        self._closed = True


class WandbProcess:
    """Sends events to `wandb_process.py`. No method raises, and only `finish` waits."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        events = folder / "wandb" / f"events-{secrets.token_hex(4)}.jsonl"
        try:
            events.parent.mkdir(exist_ok=True)
            self._events = LineFile(events)
            self._messages_path = events.with_suffix(".messages")  # what the process has to say to the user
            self._messages: TextIO = open(self._messages_path, "w+", errors="replace")  # noqa: SIM115
            with open(events.with_name("process.log"), "ab") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM, str(_PROCESS), str(events), str(os.getpid())],
                    stdin=subprocess.DEVNULL,  # a prompt for a key gets no answer
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C is for the run only
                )
        except OSError as error:
            _print(f"wandb: its process cannot be started ({error}); {self._run_continues}")
        self.send({**settings, "kind": "start", "folder": str(folder), "program": sys.argv[0]})

    @property
    def _run_continues(self) -> str:
        return f"the run goes on, {self._folder / 'metrics.jsonl'} has every value"

    def send(self, event: dict[str, Any]) -> None:
        if not self._process:
            return
        try:
            self._events.add(json.dumps(event, default=str))
        except (TypeError, ValueError) as error:
            _print(f"wandb: a {event['kind']} event is left out ({error})")
        self._print_messages()

    def _print_messages(self) -> None:
        """Print what the process has to say; an ended process gets no more events."""
        assert self._process
        exit_code = self._process.poll()
        for line in self._messages.read().splitlines():
            _print(f"wandb: {line}")
        if exit_code is not None:
            if exit_code:  # it ended without a message
                _print(f"wandb: its process has ended; {self._run_continues}")
            self._process = None

    def finish(self, exit_code: int) -> None:
        self.send({"kind": "finish", "exit_code": exit_code})
        if self._process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_FINISH_SECONDS)
            self._print_messages()
        if self._process:
            _print(f"wandb: still at work on {self._folder / 'wandb'}, and finishes by itself")
        with contextlib.suppress(OSError, AttributeError):  # where the process could not be started
            self._events.close()
            self._messages.close()
            self._messages_path.unlink()  # tells the process that the run is over


def parse_metrics_line(line: str) -> dict[str, Any] | None:
    """The step and the values (null: not finite) of a line of metrics.jsonl; None if a crash cut it off."""
    try:
        values = parse_json(line, where="metrics.jsonl")
    except UserError:
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    return values if all(isinstance(value, int | float | None) for value in values.values()) else None


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _wandb_run_id(folder: Path, *, resume: bool) -> str:
    """wandb's id of the run; a resumed run keeps the one it had."""
    path = folder / "wandb" / "run_id"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if resume and (run_id := path.read_text().strip()).isalnum():
            return run_id
    run_id = secrets.token_hex(4)
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        path.write_text(run_id + "\n")
    return run_id
