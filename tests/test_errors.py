"""Exit codes and messages of commands that fail."""

import os
import subprocess
import sys
import warnings

import pytest

from captioning.errors import Diverged, Note, Stopped, UserError, notes_to, run_command
from tests.helpers.running import ROOT


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("a.yaml: seed: -1 is negative; give 0 or more"), 2, "error: a.yaml: seed: -1"),
        (Diverged("step 3: the gradient is nan"), 3, "error: step 3: the gradient is nan"),
        (Stopped("stopped by SIGTERM", 143), 143, "stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (ZeroDivisionError("division by zero"), 1, "error: ZeroDivisionError: division by zero"),
        (RuntimeError("first line\nframe #0: c10::Error"), 1, "error: RuntimeError: first line (--debug"),
        (
            PermissionError(13, "Permission denied", "/out/x"),
            2,
            "error: /out/x: Permission denied; check the path",
        ),
        (OSError(30, "Read-only file system", "/out"), 2, "error: /out: Read-only file system; check"),
        (MemoryError("Unable to allocate 9 TiB"), 2, "error: out of memory (Unable to allocate 9 TiB)"),
        (UserError("a\nb\x00\ud800 é"), 2, "error: a\\nb\\x00\\ud800 é"),
        (UserError("x" * 5000 + "end"), 2, "error: " + "x" * 800 + " ... "),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(error, code, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["captioning"])

    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == code
    printed = capsys.readouterr().err
    assert printed.startswith(message) and printed.count("\n") == 1


def test_debug_prints_the_traceback(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["captioning", "--debug"])

    def main():
        raise UserError("a.yaml: no such file")

    with pytest.raises(SystemExit):
        run_command(main)
    assert "Traceback" in capsys.readouterr().err


def test_a_command_that_returns_nothing_exits_with_0():
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: None)
    assert ended.value.code == 0


def test_a_note_is_one_line_on_stderr(capsys):
    def main():
        for _ in range(2):
            warnings.warn(Note("x.csv: reads the split 'dev' as val"), stacklevel=1)

    with pytest.raises(SystemExit):
        run_command(main)
    assert capsys.readouterr().err == "note: x.csv: reads the split 'dev' as val\n" * 2


def test_notes_go_where_they_are_asked_for_and_other_warnings_do_not():
    lines = []
    with pytest.warns(UserWarning, match="of another kind"), notes_to(lines.append):
        warnings.warn(Note("of ours"), stacklevel=1)
        warnings.warn("of another kind", stacklevel=1)
    assert lines == ["note: of ours"]


PROGRAM = """
import os
import subprocess
import sys
from pathlib import Path
from captioning.errors import reader_left, run_command

def main():
    for number in range(20_000):
        print("a line", number, flush=number % 100 == 0)
        print("a message", number, file=sys.stderr)
    Path(sys.argv[1]).write_text(f"all lines, {reader_left()}")
    return 1

run_command(main)
"""


@pytest.mark.parametrize(
    "command", ["python | head -n 1", "python 2>&1 | head -n 1", "python >&-", "python >&- 2>&-"]
)
def test_closed_outputs_do_not_end_the_work(tmp_path, command):
    """`captioning ... --out x.json | head` writes x.json."""
    python = f"'{sys.executable}' -c '{PROGRAM}' '{tmp_path}/written'"
    shell = f"set -o pipefail; {command.replace('python', python)}"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    closed = "|" in command
    assert (done.returncode, (tmp_path / "written").read_text()) == (1, f"all lines, {closed}")
    if command == "python | head -n 1":
        assert done.stdout == "a line 0\n"
        assert done.stderr.splitlines()[-1] == (
            "standard output was closed before the end; the work was done all the same"
        )


def test_other_broken_pipes_are_errors(capsys):
    def main():
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 1 and "BrokenPipeError" in capsys.readouterr().err


def test_a_full_disk_below_stdout_is_an_error():
    if not os.path.exists("/dev/full"):
        pytest.skip("/dev/full is of Linux")
    code = "from captioning.errors import run_command; run_command(lambda: print('x'))"
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("error: OSError: [Errno 28]") and done.stderr.count(b"\n") == 1
