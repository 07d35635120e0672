"""metrics.jsonl is always complete; a working wandb gets every value, and a faulty one disturbs nothing."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from captioning.training import tracking
from captioning.training.tracking import Tracker, TrackingConfig
from tests.helpers.training import eventually

OFF = TrackingConfig(mode="disabled")
LIMIT = 7  # seconds: the 2 that the run may wait, and what a very busy machine adds
HANG = 25  # seconds that a hanging wandb hangs


@pytest.fixture(autouse=True)
def no_wandb_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No API key, settings or home folder of the user."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))


# ---- metrics.jsonl


def test_one_line_a_step(tmp_path: Path) -> None:
    tracker = Tracker(OFF, tmp_path / "run", run_config={})
    tracker.log({"loss": 2.5, "epoch": 1, "é": 0.1}, 3)
    tracker.log({"loss": float("nan"), "lr": float("inf")}, 5)
    text = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")  # there before the end
    assert text == '{"step": 3, "loss": 2.5, "epoch": 1, "é": 0.1}\n{"step": 5, "loss": null, "lr": null}\n'
    tracker.finish()
    assert (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8") == text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_a_value_cannot_be_named_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step"):
        Tracker(OFF, tmp_path, run_config={}).log({"step": 1.0}, 1)


def test_resumed_run_has_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def go(folder: str, first: int, last: int, resume_step: int | None = None) -> bytes:
        tracker = Tracker(OFF, tmp_path / folder, run_config={}, resume_step=resume_step)
        for step in range(first, last):
            tracker.log({"loss": 1 / step, "val/BLEU-4": step**0.5}, step)
        return (tmp_path / folder / "metrics.jsonl").read_bytes()

    whole = go("whole", 1, 18)
    go("cut", 1, 14)
    with open(tmp_path / "cut" / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "lo')  # a crash in the middle of a line
    assert go("cut", 8, 18, resume_step=7) == whole
    assert go("cut", 1, 3) == b"".join(whole.splitlines(keepends=True)[:2])  # begun anew


def test_a_full_disk_only_delays_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(OFF, tmp_path, run_config={})
    tracker.log({"loss": 1.0}, 1)
    real = tracker._metrics._file

    class Full:
        def write(self, data: bytes) -> int:
            assert real is not None
            real.write(data[:3])
            return 3

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    tracker._metrics._file = Full()  # type: ignore[assignment]
    tracker.log({"loss": 2.0}, 2)
    tracker.log({"loss": 3.0}, 3)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'
    tracker._metrics._file = real
    tracker.log({"loss": 4.0}, 4)
    tracker.finish()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "free some space" in said


# ---- the real wandb


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format behind 7 bytes of header."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(parts)
            parts = b""
            yield record


def offline_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def ended(file: Path) -> bool:
    return any(record.WhichOneof("record_type") == "exit" for record in records(file))


def test_an_offline_run_of_the_real_wandb_is_complete(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    picture = tmp_path / "a picture é.png"
    Image.new("RGB", (7, 5), "red").save(picture)
    config = TrackingConfig(project="p", group="seeds", name="first", tags=("a", "b"))
    tracker = Tracker(config, folder, run_config={"decoder": {"kind": "lstm"}})
    for step in range(1, 48):
        if step == 31:  # the first ones are waiting when wandb is up, the last ones come while it is
            assert eventually(lambda: bool(offline_files(folder)))
        tracker.log({"loss": 1 / step, "val/CIDEr-D": 0.25 * (step % 11)}, step)
        tracker.summary("val/CIDEr-D", 0.25 * (step % 11), best="max")
    tracker.summary("parameters", 1234)
    rows: list[list[Any]] = [[picture, "a dog\ntwo dogs", "a <unk>", 0.5], [tmp_path / "none.jpg", "x", 7, 1]]
    tracker.table("samples", ["image", "references", "prediction", "score"], rows, 47)
    tracker.finish()
    (file,) = offline_files(folder)
    output = capfd.readouterr()
    assert output.out == ""
    if not ended(file):  # on a very busy machine; then it says so, and ends on its own
        (said,) = output.err.splitlines()
        assert "finishes by itself" in said
        assert eventually(lambda: ended(file))
    found = list(records(file))
    (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.run_group, run.display_name, list(run.tags)) == (
        "p",
        "seeds",
        "first",
        ["a", "b"],
    )
    assert {item.key: item.value_json for item in run.config.update}["decoder"] == '{"kind":"lstm"}'

    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    logged = [(line["step"], line["loss"]) for line in history if "loss" in line]
    assert logged == [(step, pytest.approx(1 / step)) for step in range(1, 48)]

    summary: dict[str, Any] = {}
    for record in found:
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    assert summary["parameters"] == 1234
    best = summary.get("val/CIDEr-D/max", summary.get("val/CIDEr-D"))
    assert best in (2.5, {"max": 2.5})

    (written,) = file.parent.glob("files/media/table/samples*.json")
    table = json.loads(written.read_text())
    assert table["columns"] == ["image", "references", "prediction", "score"]
    assert table["data"][0][1:] == ["a dog\ntwo dogs", "a <unk>", 0.5]
    staged = [path for path in (folder / "wandb" / "data").rglob("*") if path.is_file()]
    (content,) = (path.read_bytes() for path in staged if path.read_bytes().startswith(b"\x89PNG"))
    with Image.open(io.BytesIO(content)) as image:  # what `wandb sync` uploads
        assert image.size == (7, 5) and image.convert("RGB").getpixel((3, 3)) == (255, 0, 0)
    assert table["data"][1] == [None, "x", "7", 1]  # a missing picture; words and numbers in one column

    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 47
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]  # all in the run's folder


# ---- faults of wandb

FAKE = """
import json, os, signal, sys, time

FAULT, NOTES = os.environ["FAKE_FAULT"], os.environ["FAKE_NOTES"]

def note(*args):
    with open(NOTES, "a") as file:
        file.write(json.dumps(args, default=str) + "\\n")

def at(place):
    kind, _, where = FAULT.partition(" ")
    if where == place:
        if kind == "raise": raise RuntimeError("wandb is broken")
        if kind == "exit": sys.exit(3)
        if kind == "hang": time.sleep(25); os._exit(0)
        if kind == "kill": os.kill(os.getpid(), signal.SIGKILL)
        if kind == "chatter": print("x" * 1000000); print("x" * 1000000, file=sys.stderr); input("key? ")

at("import")

class Run:
    summary = {}
    def log(self, values): at("log"); note("log", values)
    def define_metric(self, *args, **named): note("define", args, named)
    def finish(self, exit_code): at("finish"); note("finish", exit_code)

def init(**named):
    at("init")
    if named["mode"] == "online": at("online")
    note("init", named["mode"], named["id"], named["resume"])
    return Run()

Settings = dict
"""


@pytest.fixture
def fake_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[], list[Any]]]:
    """Replace wandb by a fake with a fault; returns a function that reads what the fake noted."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(FAKE)
    notes = tmp_path / "notes"

    def install(fault: str) -> Callable[[], list[Any]]:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
        monkeypatch.setenv("FAKE_FAULT", fault)
        monkeypatch.setenv("FAKE_NOTES", str(notes))
        return lambda: [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []

    return install


def train(folder: Path, config: TrackingConfig) -> tuple[bytes, Tracker]:
    """A short run that has not ended; its metrics.jsonl."""
    tracker = Tracker(config, folder, run_config={})
    for step in range(1, 60):
        tracker.log({"loss": 1 / step}, step)
        tracker.summary("best", step, best="min")
    return (folder / "metrics.jsonl").read_bytes(), tracker


FAULTS = [f"{kind} {place}" for kind in ("raise", "hang") for place in ("import", "init", "log", "finish")]


@pytest.mark.parametrize("fault", [*FAULTS, "exit init", "kill init", "kill log", "chatter init"])
def test_a_fault_of_wandb_changes_nothing(
    fault: str,
    tmp_path: Path,
    fake_wandb: Callable[[str], Any],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, tracker = train(tmp_path / "off", OFF)
    tracker.finish()
    fake_wandb(fault)
    if fault != "hang finish":  # one fault with the real 2 seconds
        monkeypatch.setattr(tracking, "_FINISH_SECONDS", 0.3)
    start = time.perf_counter()
    metrics, tracker = train(tmp_path / "run", TrackingConfig())
    assert metrics == expected
    said = ""

    def heard() -> bool:
        nonlocal said
        tracker.summary("best", 1.0)  # messages come with any call
        said += capfd.readouterr().err
        return "metrics.jsonl" in said

    kind, place = fault.split()
    if kind not in ("hang", "chatter") and place != "finish":
        assert eventually(heard)
    tracker.finish()
    if kind == "hang":
        assert time.perf_counter() - start < LIMIT < HANG
    output = capfd.readouterr()
    assert output.out == "" and (tmp_path / "run" / "metrics.jsonl").read_bytes() == expected
    lines = (said + output.err).splitlines()
    assert all(line.startswith("wandb: ") for line in lines) and len(lines) <= 2


def test_a_killed_wandb_is_reported_once(
    tmp_path: Path, fake_wandb: Callable[[str], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    fake_wandb("")
    tracker = Tracker(TrackingConfig(), tmp_path / "run", run_config={})
    process = tracker._wandb._process  # type: ignore[union-attr]
    assert process
    tracker.log({"loss": 1.0}, 1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for step in range(2, 13):
        tracker.log({"loss": 1.0}, step)
    tracker.finish()
    (said,) = capfd.readouterr().err.splitlines()
    assert "its process has ended" in said
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 12


def test_a_hanging_wandb_does_not_hold_up_the_interpreter(
    tmp_path: Path, fake_wandb: Callable[[str], Any]
) -> None:
    fake_wandb("hang finish")
    program = (
        "import sys, time; from captioning.training.tracking import *; print(time.time()); "
        "t = Tracker(TrackingConfig(), sys.argv[1], run_config={}); t.log({'a': 1.0}, 1); {end}"
    )
    processes = []
    for number, end in enumerate(("t.finish()", "pass", "raise SystemExit(3)")):
        command = [sys.executable, "-c", program.replace("{end}", end), str(tmp_path / f"run{number}")]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    for process in processes:
        begun, _ = process.communicate()  # waits for every process that holds the output, too
        assert time.time() - float(begun) < HANG - 5  # importing may take long on a busy machine
    assert [process.returncode for process in processes] == [0, 0, 3]


def test_a_working_wandb_gets_everything(tmp_path: Path, fake_wandb: Callable[[str], Any]) -> None:
    notes = fake_wandb("")
    train(tmp_path / "run", TrackingConfig())[1].finish()
    assert eventually(lambda: ["finish", 0] in notes())
    steps = [note[1]["step"] for note in notes() if note[0] == "log"]
    assert steps == list(range(1, 60))
    assert ["define", ["best"], {"step_metric": "step", "summary": "min"}] in notes()


def test_a_run_that_dies_is_closed_as_failed(tmp_path: Path, fake_wandb: Callable[[str], Any]) -> None:
    notes = fake_wandb("")
    program = (
        "import os, sys; from captioning.training.tracking import *; "
        "t = Tracker(TrackingConfig(), sys.argv[1], run_config={}); t.log({'a': 1.0}, 1); "
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], check=False)
    assert eventually(lambda: ["finish", 1] in notes())
    assert ["log", {"step": 1, "a": 1.0}] in notes()


def test_online_without_key_or_network_goes_on_offline(
    tmp_path: Path, fake_wandb: Callable[[str], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    notes = fake_wandb("raise online")
    _, tracker = train(tmp_path / "run", TrackingConfig(mode="online"))
    assert eventually(lambda: tmp_path.joinpath("notes").exists())
    tracker.finish()
    assert eventually(lambda: ["finish", 0] in notes())
    assert [note[1] for note in notes() if note[0] == "init"] == ["offline"]
    assert sum(note[0] == "log" for note in notes()) == 59
    said = capfd.readouterr().err.splitlines()[0]
    assert "offline" in said and "wandb sync" in said


def test_a_stopped_process_delays_nothing_and_loses_nothing(
    tmp_path: Path, fake_wandb: Callable[[str], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    notes = fake_wandb("")
    tracker = Tracker(TrackingConfig(), tmp_path / "run", run_config={})
    assert tracker._wandb and tracker._wandb._process
    process = tracker._wandb._process
    os.kill(process.pid, signal.SIGSTOP)
    tracemalloc.start()
    for step in range(310):
        tracker.log({"loss": 1.0}, step)
        tracker.table("samples", ["text"], [["x" * 100_000]], step)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6  # of 31 MB that were sent
    start = time.perf_counter()
    tracker.finish()
    assert time.perf_counter() - start < LIMIT
    assert "finishes by itself" in capfd.readouterr().err
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 310
    os.kill(process.pid, signal.SIGCONT)
    assert eventually(lambda: ["finish", 0] in notes())
    steps = [note[1]["step"] for note in notes() if note[0] == "log" and "loss" in note[1]]
    assert steps == list(range(310))


def test_resumed_run_keeps_its_id_and_its_best(tmp_path: Path, fake_wandb: Callable[[str], Any]) -> None:
    notes = fake_wandb("")
    for resume_step in (None, 4):
        tracker = Tracker(TrackingConfig(), tmp_path / "run", run_config={}, resume_step=resume_step)
        tracker.log({"score": 10.0 if resume_step is None else 3.0}, 4 if resume_step is None else 5)
        tracker.finish()
    assert tracker._ranges["score"] == (3.0, 10.0)
    assert eventually(lambda: sum(note[0] == "finish" for note in notes()) == 2)
    first, second = [note[1:] for note in notes() if note[0] == "init"]
    assert first == second and first[2] == "allow"


def test_wandb_mode_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    Tracker(TrackingConfig(mode="online"), tmp_path / "run", run_config={}).finish()
    assert not (tmp_path / "run" / "wandb").exists()


def test_unknown_settings_are_refused() -> None:
    adapter = TypeAdapter(TrackingConfig)
    assert adapter.validate_python({"mode": "online", "tags": ["a"]}).tags == ("a",)
    for wrong in ({"mode": "sometimes"}, {"projct": "x"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
