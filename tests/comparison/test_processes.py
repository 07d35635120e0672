"""Child processes of a study: parallel jobs, and the package that children import."""

import functools
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from captioning.comparison import processes
from captioning.errors import UserError


def test_jobs_share_the_cores():
    cores = torch.get_num_threads()
    assert processes.threads_per_job(1) == cores and processes.threads_per_job(2 * cores) == 1


def test_the_first_error_is_raised_and_no_further_task_begins():
    begun = []
    failing = threading.Event()

    def fail():
        failing.set()
        raise UserError("this one")

    def other(number):
        begun.append(number)
        failing.wait(60)

    tasks = [functools.partial(other, 0), fail, *[functools.partial(other, n) for n in range(1, 9)]]
    with pytest.raises(UserError, match="this one"):
        processes.run_parallel(2, tasks, description="", unit="task")
    assert begun[0] == 0 and len(begun) <= 2


def test_a_child_gives_its_exit_code_and_last_line(capfd):
    code, message = processes.child_command(jobs=2)("compare")
    assert code == 2 and message.endswith("give a study, or runs, or --predictions with --references")
    assert capfd.readouterr().err == ""  # with several jobs only the study prints


@pytest.mark.skipif(sys.version_info < (3, 11), reason="PYTHONSAFEPATH is new in Python 3.11")
def test_a_child_imports_this_package_whatever_its_working_directory_holds(tmp_path):
    (tmp_path / "captioning").mkdir()
    (tmp_path / "captioning" / "__init__.py").write_text("raise ImportError('the wrong package')")
    code = "import captioning; print(captioning.__file__)"
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "", **processes._import_path()},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert Path(child.stdout.strip()).parents[1] == processes.PACKAGE_FOLDER
