"""A lock on a folder that one process writes, on any platform and on network disks."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import filelock

from captioning.errors import UserError
from captioning.utils.files import read_json

LOCK, OWNER = ".lock", ".lock-owner.json"
TAKE_OVER_S = 30.0
"""Seconds to wait for a lock whose owner is dead: its loader processes hold it until they notice."""


class Owner(NamedTuple):
    """The process that holds a lock."""

    pid: int
    host: str
    since: str  # local time

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def dead(self) -> bool:
        """Whether the process ran on this machine and is gone."""
        if self.host != socket.gethostname() or os.name == "nt":  # os.kill(pid, 0) would end it on Windows
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            return False
        return False


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike[str], *, advice: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock of `folder`, which is made where it is missing.

    The operating system releases the lock of a process that ends in any way. On a file system without locks a
    marker file is used instead.

    Args:
        advice: what the user can do about a second writer; the end of the message.
        wait: say so on stderr and wait until the lock is free, instead of raising.

    Raises:
        UserError: another process holds the lock (with its process number and host), or the folder cannot be written.
    """
    folder = Path(folder)
    lock = _acquire(folder, advice=advice, wait=wait)
    try:
        owner = Owner(os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"))
        with contextlib.suppress(OSError):  # a full disk; the lock holds without it
            (folder / OWNER).write_text(json.dumps(owner._asdict()), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _acquire(folder: Path, *, advice: str, wait: bool) -> filelock.BaseFileLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return _try(filelock.FileLock(folder / LOCK), folder, advice=advice, wait=wait)
        except NotImplementedError:  # a file system without locks
            return _try(filelock.SoftFileLock(folder / LOCK), folder, advice=advice, wait=wait)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None


def _try(lock: filelock.BaseFileLock, folder: Path, *, advice: str, wait: bool) -> filelock.BaseFileLock:
    with contextlib.suppress(filelock.Timeout):
        lock.acquire(timeout=0)
        return lock
    owner = _owner(folder)
    if owner is None or not owner.dead:
        if not wait:
            raise UserError(f"{folder}: {owner or 'another process'} writes here; {advice}")
        print(f"{folder}: {owner or 'another process'} writes here; waiting for it", file=sys.stderr)
        lock.acquire()
        return lock
    if isinstance(lock, filelock.SoftFileLock):  # a marker, which nobody else removes
        Path(lock.lock_file).unlink(missing_ok=True)
    try:
        lock.acquire(timeout=TAKE_OVER_S)
    except filelock.Timeout:
        raise UserError(f"{folder}: locked by a process that {owner.pid} left behind; {advice}") from None
    return lock


def _owner(folder: Path) -> Owner | None:
    for _ in range(10):  # the file is written a moment after the lock is taken
        try:
            pid, host, since = read_json(folder / OWNER).values()
            return Owner(int(pid), str(host), str(since))
        except (UserError, ValueError, TypeError, AttributeError):
            time.sleep(0.05)
    return None
