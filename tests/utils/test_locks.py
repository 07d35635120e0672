"""The folder lock, held and lost by real processes."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from captioning.errors import UserError
from captioning.utils import locks
from captioning.utils.locks import folder_lock

HOLDER = """
import sys, time
from captioning.utils.locks import folder_lock
with folder_lock(sys.argv[1], advice="choose another name"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_who_is_first(tmp_path, holder):
    place = rf"process {holder.pid} on {socket.gethostname()}, since 20.*; choose another name"
    with pytest.raises(UserError, match=place), folder_lock(tmp_path, advice="choose another name"):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / locks.OWNER).exists()
    with folder_lock(tmp_path, advice="choose another name"):
        assert str(os.getpid()) in (tmp_path / locks.OWNER).read_text()
    assert not (tmp_path / locks.OWNER).exists()


def test_a_child_that_outlives_the_killed_owner_is_no_obstacle(tmp_path):
    """Loader processes inherit the lock and notice their parent's death a little later."""
    code = "import os\nif os.fork() == 0:\n    time.sleep(1.5)\n    os._exit(0)\n"
    program = HOLDER.replace("    print", f"    {code.strip().replace(chr(10), chr(10) + '    ')}\n    print")
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    with folder_lock(tmp_path, advice="-"):  # is not refused
        assert str(os.getpid()) in (tmp_path / locks.OWNER).read_text()


def test_waiting_for_a_lock(tmp_path, holder, capfd):
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.7; kill {holder.pid}"])
    began = time.monotonic()
    with folder_lock(tmp_path, advice="-", wait=True):
        assert time.monotonic() - began > 0.3
    assert f"process {holder.pid} on {socket.gethostname()}" in (line := capfd.readouterr().err)
    assert line.endswith("writes here; waiting for it\n")
    killer.wait()


WITHOUT_LOCKS = """
import filelock
def missing(self):
    raise NotImplementedError("no locks here")
filelock.FileLock._acquire = missing
"""


def test_a_killed_process_leaves_its_marker_on_a_file_system_without_locks(tmp_path, monkeypatch):
    process = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_LOCKS + HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    monkeypatch.setattr(locks.filelock.FileLock, "_acquire", missing)
    with pytest.raises(UserError, match=f"process {process.pid} on"), folder_lock(tmp_path, advice="-"):
        pass
    process.kill()
    process.wait()
    for wait in (True, False):
        with folder_lock(tmp_path, advice="-", wait=wait):
            assert str(os.getpid()) in (tmp_path / locks.OWNER).read_text()


def missing(self):
    raise NotImplementedError("no locks here")


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.filelock.FileLock, "_acquire", missing)
    with (
        folder_lock(tmp_path, advice="go away"),
        pytest.raises(UserError, match="go away"),
        folder_lock(tmp_path, advice="go away"),
    ):
        pass
    with folder_lock(tmp_path, advice="go away"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"), folder_lock(tmp_path / "run", advice="-"):
        pass
