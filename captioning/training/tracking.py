"""Records a run's numbers: metrics.jsonl always, wandb beside it. The only file that imports wandb; no torch.

wandb lives in a process of its own, fed through a pipe that is never waited for. Whatever it does there, the
run goes on: raising, hanging, being killed, having no key or no network. Its threads and its handlers of exit
and signals are not in the training process, and neither is its import.

The end of a run waits 2 seconds at most for it. A healthy offline run is whole by then; one that is not (a
run of a few seconds, a slow disk, an upload) is finished by that process after the run's own has ended, for
ten minutes at most. Waiting "while there is progress" would hold up the run's end for a slow upload as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import queue
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from captioning.utils.files import atomic_write

_PATIENCE = 2.0  # seconds that the run may wait for wandb, in all
_BACKLOG = 1 << 24  # bytes of messages kept for a wandb process that doesn't read
_QUEUE = 100_000  # messages that process keeps while wandb is busy
_INIT_TIMEOUT = 30.0  # seconds that wandb may try to reach its server before it goes on offline
_LINGER = 600.0  # seconds that wandb's process may outlive the run

Cell = str | float | int | Path
Best = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run's numbers go besides metrics.jsonl.

    The environment variable WANDB_MODE, set to one of the modes, goes before `mode`, as wandb's users expect.
    """

    __pydantic_config__ = {"extra": "forbid"}

    mode: Literal["online", "offline", "disabled"] = "offline"
    project: str = "captioning"
    group: str | None = None  # runs that belong together, such as the seeds of one experiment
    name: str | None = None  # the run folder's name where None
    tags: tuple[str, ...] = ()


class Tracker:
    """Writes `folder`/metrics.jsonl and feeds wandb. For one process of a run: that of rank 0."""

    def __init__(
        self,
        config: TrackingConfig,
        folder: str | os.PathLike[str],
        *,
        run_config: Mapping[str, Any],
        resume_step: int | None = None,
    ) -> None:
        """Begin metrics.jsonl anew; or, with `resume_step`, keep its lines up to that step and go on.

        Args:
            run_config: the experiment's settings, JSON-able, for wandb.
            resume_step: the step of the checkpoint that the run goes on from.
        """
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._range: dict[str, tuple[float, float]] = {}
        self._resume_step = resume_step
        self._lines = _Lines(self.folder / "metrics.jsonl", self._keep("metrics.jsonl"))
        self._timings: _Lines | None = None
        mode = os.environ.get("WANDB_MODE", config.mode)
        self._wandb: _Wandb | None = None
        if mode in ("online", "offline"):
            self._wandb = _Wandb(
                self.folder,
                {
                    **asdict(config),
                    "mode": mode,
                    "name": config.name or self.folder.name,
                    "id": _run_id(self.folder, keep=resume_step is not None),
                    "run_config": run_config,
                },
            )

    def _keep(self, name: str) -> bytes:
        """The lines of a file up to the step resumed from; a line torn by a crash is not among them."""
        resume_step, path, kept = self._resume_step, self.folder / name, b""
        if resume_step is None or not path.exists():
            return kept
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                values = json.loads(line)
                wanted = line.endswith(b"\n") and values["step"] <= resume_step
            except (ValueError, TypeError, KeyError):
                continue
            if wanted:
                kept += line
                self._remember({name: value for name, value in values.items() if value is not None})
        return kept

    def _remember(self, values: Mapping[str, float]) -> None:
        """Keep the largest and the smallest value of each name."""
        for name, value in values.items():
            if math.isfinite(value):
                low, high = self._range.get(name, (value, value))
                self._range[name] = (min(low, value), max(high, value))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write one line: the step and its values, in the order given; a value that is not finite as null."""
        self._write(self._lines, values, step)

    def time(self, values: Mapping[str, float], step: int) -> None:
        """As `log`, into timings.jsonl: what differs between two runs of the same numbers (seconds, memory)."""
        if self._timings is None:
            self._timings = _Lines(self.folder / "timings.jsonl", self._keep("timings.jsonl"))
        self._write(self._timings, values, step)

    def _write(self, lines: _Lines, values: Mapping[str, float], step: int) -> None:
        if "step" in values:
            raise ValueError("'step' is the step's own name; give the value another")
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        lines.add(json.dumps({"step": step, **finite}, ensure_ascii=False))
        self._remember(numbers)
        self._send(kind="log", values={"step": step, **numbers})

    def summary(self, name: str, value: float, best: Best | None = None) -> None:
        """Set a number of the run as a whole; with `best`, the largest or smallest given or logged so far."""
        if best is not None:
            self._remember({name: float(value)})
            low, high = self._range.get(name, (value, value))
            value = high if best == "max" else low
        self._send(kind="summary", name=name, value=float(value), best=best)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """Show rows of text, numbers and images (a `Path` is an image) in wandb."""
        cells = [[{"image": str(c.absolute())} if isinstance(c, Path) else c for c in row] for row in rows]
        self._send(kind="table", name=name, columns=list(columns), rows=cells, step=step)

    def finish(self, exit_code: int = 0) -> None:
        """Close the record. Waits for wandb 2 seconds at most; what it still has to do goes on by itself."""
        self._lines.close()
        if self._timings:
            self._timings.close()
        if self._wandb:
            self._wandb.finish(exit_code)
            self._wandb = None

    def _send(self, **message: Any) -> None:
        if self._wandb:
            self._wandb.send(message)


class _Lines:
    """A file of lines that each are there, whole, once `add` returns; a full disk delays them and no more."""

    def __init__(self, path: Path, kept: bytes) -> None:
        with atomic_write(path) as part:
            part.write_bytes(kept)
        self._path = path
        self._file: BinaryIO | None = open(path, "ab", buffering=0)  # noqa: SIM115
        self._size = len(kept)
        self._pending: list[bytes] = []

    def add(self, line: str) -> None:
        self._pending.append(line.encode("utf-8", "surrogatepass") + b"\n")
        self._flush()

    def _flush(self) -> None:
        if not self._file:
            return
        data = b"".join(self._pending)
        try:
            if self._file.write(data) != len(data):
                raise OSError("the disk took only a part of it")
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)  # no half lines
            if len(self._pending) == 1:
                _log(f"{self._path}: cannot be written ({error}); free some space, its lines wait in memory")
            return
        self._size += len(data)
        self._pending.clear()

    def close(self) -> None:
        if self._file:
            if self._pending:
                self._flush()
            if self._pending:
                _log(f"{self._path}: its last {len(self._pending)} lines could not be written")
            with contextlib.suppress(OSError):
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


class _Wandb:
    """The run's end of the pipe. Every method returns at once, `finish` within two seconds; none raises."""

    def __init__(self, folder: Path, start: dict[str, Any]) -> None:
        self.folder = folder
        self._backlog: deque[bytes] = deque()
        self._waiting = 0  # bytes in the backlog
        self._dropped = 0
        self._heard = b""
        self._done = False
        self._process: subprocess.Popen[bytes] | None = None
        self._to = self._from = -1
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for the run
            )
            assert self._process.stdin and self._process.stdout
            self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
            os.set_blocking(self._to, False)
            os.set_blocking(self._from, False)
            if hasattr(fcntl, "F_SETPIPE_SZ"):  # room for what comes while wandb's process starts
                with contextlib.suppress(OSError):
                    fcntl.fcntl(self._to, fcntl.F_SETPIPE_SZ, 1 << 20)
        except (OSError, ValueError) as error:
            self._give_up(f"its process cannot be started ({error})")
        self.send(
            {**start, "kind": "start", "folder": str(folder), "pid": os.getpid(), "program": sys.argv[0]}
        )

    def send(self, message: dict[str, Any]) -> None:
        if not self._process:
            return
        try:
            line = json.dumps(message, default=str).encode() + b"\n"
        except (TypeError, ValueError) as error:
            _log(f"wandb: a {message['kind']} message is left out ({error})")
            return
        if self._waiting + len(line) > _BACKLOG:
            self._dropped += 1
        else:
            self._backlog.append(line)
            self._waiting += len(line)
        self._push()
        self._listen()

    def _push(self) -> None:
        """Write what the pipe takes."""
        while self._process and self._backlog:
            try:
                written = os.write(self._to, self._backlog[0])
            except BlockingIOError:
                return
            except OSError:
                self._listen()  # its last words, if it had any
                self._give_up(None if self._done else "its process has ended")
                return
            self._waiting -= written
            if written == len(self._backlog[0]):
                self._backlog.popleft()
            else:
                self._backlog[0] = self._backlog[0][written:]

    def _listen(self) -> None:
        """Pass on what wandb's process has to say."""
        while self._process:
            try:
                heard = os.read(self._from, 1 << 16)
            except (BlockingIOError, OSError):
                return
            if not heard:
                return
            *lines, self._heard = (self._heard + heard).split(b"\n")
            for line in lines:
                if line == b"done":
                    self._done = True
                else:
                    _log(f"wandb: {line.decode(errors='replace')}")

    def _give_up(self, reason: str | None) -> None:
        """Go on without wandb; say why, where it has not said so itself."""
        self._process = None
        self._backlog.clear()
        if reason:
            _log(f"wandb: {reason}; the run goes on, {self.folder / 'metrics.jsonl'} has every value")

    def finish(self, exit_code: int) -> None:
        deadline = time.monotonic() + _PATIENCE
        if self._dropped:
            _log(f"wandb: did not keep up, {self._dropped} messages were left out (metrics.jsonl has all)")
        self._backlog.append(json.dumps({"kind": "finish", "exit_code": exit_code}).encode() + b"\n")
        while self._process and (left := deadline - time.monotonic()) > 0:
            ended = self._process.poll() is not None
            self._push()
            self._listen()
            if self._done or not self._process:
                break
            if ended:
                self._give_up("its process has ended")
                break
            select.select([self._from], [self._to] if self._backlog else [], [], min(left, 0.05))
        if not self._process:
            return
        if not self._done:
            _log(f"wandb: still at work on {self.folder / 'wandb'}, and finishes by itself")
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()  # type: ignore[union-attr]


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run_id(folder: Path, *, keep: bool) -> str:
    """wandb's id of the run: a resumed run goes on under the one it had."""
    path = folder / "wandb" / "run_id"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if keep and (known := path.read_text().strip()).isalnum():
            return known
    fresh = secrets.token_hex(4)
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        path.write_text(fresh + "\n")
    return fresh


# What follows runs in wandb's process.

# our package is found where this file lies, installed or not; nothing in the working folder comes before it
_PROGRAM = (
    f"import sys; sys.path[0] = {str(Path(__file__).resolve().parents[2])!r}; "
    "from captioning.training.tracking import serve; serve()"
)


def serve() -> None:
    """Read messages from stdin until the run ends, and hand them to wandb; ends the process.

    Says on stdout what the user must know. A thread reads: the pipe must not fill up while wandb is busy.
    """
    messages: queue.Queue[dict[str, Any]] = queue.Queue()
    pipe, voice = os.fdopen(os.dup(0), "rb"), os.dup(1)  # wandb's own use of 0, 1 and 2 goes to files
    threading.Thread(target=_read, args=(pipe, messages), daemon=True).start()

    def log(line: str) -> None:
        with contextlib.suppress(OSError):  # the run may be over
            os.write(voice, line.replace("\n", " ").encode() + b"\n")

    start = messages.get()
    _redirect(Path(start["folder"]) / "wandb" / "tracking.log")
    try:
        _follow(start, messages, log)
    except BaseException as error:
        log(f"{type(error).__name__}: {error}; the run goes on, metrics.jsonl has every value")
    log("done")
    os._exit(0)  # wandb's exit handlers could hang


def _read(pipe: BinaryIO, messages: queue.Queue[dict[str, Any]]) -> None:
    for line in pipe:
        if line.endswith(b"\n") and messages.qsize() < _QUEUE:
            messages.put(json.loads(line))
    messages.put({"kind": "finish", "exit_code": 1})  # the run is gone without a word, or has said it before
    time.sleep(_LINGER)
    os.killpg(0, signal.SIGKILL)  # wandb hangs: leave nothing of it behind


def _redirect(log: Path) -> None:
    """Standard input from nowhere (no prompt can wait for an answer), output to a file."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        output = os.open(os.devnull, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)


def _follow(start: dict[str, Any], messages: queue.Queue[dict[str, Any]], log: Callable[[str], None]) -> None:
    """Do with wandb what the messages say, until the last one."""
    import wandb

    run, failures, defined = _begin(wandb, start, log), 0, set()
    while (message := messages.get())["kind"] != "finish":
        try:
            if message["kind"] == "log":
                run.log(message["values"])
            elif message["kind"] == "table":
                run.log({"step": message["step"], message["name"]: _table(wandb, message)})
            elif message["best"] is None:
                run.summary.update({message["name"]: message["value"]})
            else:
                if message["name"] not in defined:
                    run.define_metric(message["name"], step_metric="step", summary=message["best"])
                    defined.add(message["name"])
                run.summary.update({message["name"]: {message["best"]: message["value"]}})
        except Exception as error:
            failures += 1
            if failures == 1:
                log(f"{type(error).__name__}: {error}; the run goes on, metrics.jsonl has every value")
    if failures > 1:
        log(f"{failures} messages could not be recorded")
    run.finish(exit_code=message["exit_code"])


def _begin(wandb: Any, start: dict[str, Any], log: Callable[[str], None]) -> Any:
    """A wandb run; an offline one where an online one cannot be had."""
    folder = start["folder"]

    def begin(mode: str) -> Any:
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=_INIT_TIMEOUT,
            disable_code=True,
            program=start["program"],
            x_stats_pid=start["pid"],  # the run's use of the machine, not this process's
        )
        return wandb.init(
            mode=mode,
            dir=folder,
            project=start["project"],
            group=start["group"],
            name=start["name"],
            tags=start["tags"],
            id=start["id"],
            resume="allow",
            config=start["run_config"],
            settings=settings,
        )

    # what wandb would put into the user's home
    for variable, name in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache")):
        os.environ.setdefault(variable, os.path.join(folder, "wandb", name))
    try:
        run = begin(start["mode"])
    except Exception as error:
        if start["mode"] == "offline":
            raise
        reason = str(error).strip().split("\n")[0]
        log(
            f"cannot go online ({reason}); goes on offline, `wandb sync {folder}/wandb/offline-run-*` uploads"
        )
        run = begin("offline")
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _table(wandb: Any, message: dict[str, Any]) -> Any:
    columns = [[_cell(wandb, cell) for cell in column] for column in zip(*message["rows"], strict=True)]
    for number, column in enumerate(columns):
        kinds = {float if isinstance(cell, int) else type(cell) for cell in column if cell is not None}
        if len(kinds) > 1:  # a column of wandb's has one type
            columns[number] = [str(cell) for cell in column]
    return wandb.Table(columns=message["columns"], data=[list(row) for row in zip(*columns, strict=True)])


def _cell(wandb: Any, cell: Any) -> Any:
    if not isinstance(cell, dict):
        return cell
    try:
        return wandb.Image(cell["image"])
    except Exception:
        return None  # a table with a hole in it rather than none
