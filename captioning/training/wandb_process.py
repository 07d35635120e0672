"""The process that uses wandb: reads the tracker's events from a file. Imports nothing of this package.

    python wandb_process.py EVENTS PID_OF_THE_RUN

Messages for the user go to EVENTS.messages; what wandb prints goes to wandb/process.log.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

INIT_SECONDS = 30.0  # for wandb to reach its server before the run is tracked offline
LINGER_SECONDS = 600.0  # that this process may outlive the run
POLL_SECONDS = 0.05
RUN_CONTINUES = "the run goes on, metrics.jsonl has every value"


def main() -> None:
    """Pass the events on to wandb until the run ends, then end the process."""
    events, run_pid = Path(sys.argv[1]), int(sys.argv[2])
    messages = events.with_suffix(".messages")
    # a run of a few seconds may be over, and the file removed
    file = os.open(messages if messages.exists() else os.devnull, os.O_WRONLY | os.O_APPEND)
    threading.Thread(target=_end_after_run, args=(messages, run_pid), daemon=True).start()

    def say(line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(file, line.replace("\n", " ").encode() + b"\n")

    try:
        _track(_read(events, run_pid), run_pid, say)
    except BaseException as error:
        say(f"{type(error).__name__}: {error}; {RUN_CONTINUES}")
    with contextlib.suppress(OSError):
        events.unlink()
    os._exit(0)  # wandb's exit handlers could hang


def _end_after_run(messages: Path, run_pid: int) -> None:
    """Kill this process and wandb's own if they hang for ten minutes after the run."""
    while os.getppid() == run_pid and messages.exists():
        time.sleep(1)
    time.sleep(LINGER_SECONDS)
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _read(events: Path, run_pid: int) -> Iterator[dict[str, Any]]:
    """The events as they are written; a run that died gets a last one with exit code 1."""
    with open(events, "rb") as file:
        incomplete = b""
        while True:
            run_alive = os.getppid() == run_pid
            data = file.read()
            *lines, incomplete = (incomplete + data).split(b"\n")
            for line in lines:
                yield json.loads(line)
            if not data and not run_alive:
                yield {"kind": "finish", "exit_code": 1}
            if not data:
                time.sleep(POLL_SECONDS)


def _track(events: Iterator[dict[str, Any]], run_pid: int, say: Callable[[str], None]) -> None:
    start = next(events)
    import wandb

    run, failures, with_best = _start(wandb, start, run_pid, say), 0, set()
    for event in events:
        if event["kind"] == "finish":
            break
        try:
            if event["kind"] == "log":
                run.log(event["values"])
            elif event["kind"] == "table":
                run.log({"step": event["step"], event["name"]: _table(wandb, event)})
            elif event["best"] is None:
                run.summary.update({event["name"]: event["value"]})
            else:
                if event["name"] not in with_best:
                    run.define_metric(event["name"], step_metric="step", summary=event["best"])
                    with_best.add(event["name"])
                run.summary.update({event["name"]: {event["best"]: event["value"]}})
        except Exception as error:
            failures += 1
            if failures == 1:
                say(f"{type(error).__name__}: {error}; {RUN_CONTINUES}")
    if failures > 1:
        say(f"{failures} events could not be recorded")
    run.finish(exit_code=event["exit_code"])


def _start(wandb: Any, start: dict[str, Any], run_pid: int, say: Callable[[str], None]) -> Any:
    """A wandb run; offline if online is not possible."""
    folder = start["folder"]
    # wandb would put these into the user's home
    os.environ.setdefault("WANDB_DATA_DIR", os.path.join(folder, "wandb", "data"))
    os.environ.setdefault("WANDB_CACHE_DIR", os.path.join(folder, "wandb", "cache"))
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_SECONDS,
        disable_code=True,
        program=start["program"],
        x_stats_pid=run_pid,  # system metrics of the run, not of this process
    )
    names = ("project", "group", "name", "tags", "id")
    options = {**{name: start[name] for name in names}, "config": start["run_config"], "settings": settings}
    try:
        run = wandb.init(mode=start["mode"], dir=folder, resume="allow", **options)
    except Exception as error:
        if start["mode"] == "offline":
            raise
        reason = str(error).strip().split("\n")[0]
        say(
            f"cannot go online ({reason}); goes on offline, `wandb sync {folder}/wandb/offline-run-*` uploads"
        )
        run = wandb.init(mode="offline", dir=folder, resume="allow", **options)
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _table(wandb: Any, event: dict[str, Any]) -> Any:
    columns = [[_cell(wandb, cell) for cell in column] for column in zip(*event["rows"], strict=True)]
    for number, column in enumerate(columns):
        types = {float if isinstance(cell, int) else type(cell) for cell in column if cell is not None}
        if len(types) > 1:  # a wandb column has one type
            columns[number] = [str(cell) for cell in column]
    return wandb.Table(columns=event["columns"], data=[list(row) for row in zip(*columns, strict=True)])


def _cell(wandb: Any, cell: Any) -> Any:
    if not isinstance(cell, dict):
        return cell
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(base64.b64decode(cell["png"])), formats=("PNG",)))


if __name__ == "__main__":
    main()
