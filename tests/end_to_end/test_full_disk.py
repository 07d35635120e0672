"""Training on a disk that is full for a while, and a feature store on a disk that is too small."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from captioning.errors import UserError
from captioning.training import checkpoint
from captioning.utils.files import check_manifest
from tests.helpers.training import checkpoint_weights, experiment, metrics_of, tiny_settings


class SmallDisk(NamedTuple):
    folder: Path
    fill: Callable[[], None]
    free: Callable[[], None]
    free_30_kb: Callable[[], None]


@contextlib.contextmanager
def tmpfs(folder: Path) -> Iterator[SmallDisk]:
    """A disk of 24 MB."""
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("needs root and the right to mount a tmpfs")
    ballast = folder / "ballast"

    def fill() -> None:
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    try:
        yield SmallDisk(
            folder, fill, ballast.unlink, lambda: os.truncate(ballast, os.path.getsize(ballast) - 30_000)
        )
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def file_size_limit(folder: Path) -> Iterator[SmallDisk]:
    """A disk that refuses files over 30 kB when it is full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    free = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))  # noqa: E731
    try:
        fill = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # noqa: E731
        yield SmallDisk(folder, fill, free, lambda: None)
    finally:
        free()


@pytest.fixture(params=[tmpfs, file_size_limit])
def disk(request, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    with request.param(folder) as small:
        yield small


def settings(folder: Path, data: Path, epochs: int = 4):
    """Three saves an epoch: after updates 2, 4 and 5, and so on."""
    values = tiny_settings(folder, "run", epochs=epochs)
    values["dataset"]["root"] = str(data)
    values["training"]["save_every"] = 2
    return values


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def whole(data):
    """The run without a fault."""
    run = experiment(settings(data, data))
    run.train()
    return run


def test_training_goes_on_while_the_disk_is_full(disk, data, whole, monkeypatch):
    """It fills up after the third of twelve saves, and has room again before the last epoch's."""
    lines: list[str] = []
    run = experiment(settings(disk.folder, data), lines.append)
    real, saved = checkpoint.save, []

    def save(*args, **kwargs):
        if len(saved) == 10:
            disk.free()
        real(*args, **kwargs)
        saved.append(checkpoint.read_step(run.folder / "checkpoints" / "last"))
        if len(saved) == 3:
            disk.fill()

    def full(*args, **kwargs):
        try:
            save(*args, **kwargs)
        except OSError:
            saved.append(None)
            folders = sorted((run.folder / "checkpoints").iterdir())
            assert [folder.name for folder in folders] == ["before-1", "last"]  # and no debris
            for folder in folders:
                check_manifest(folder, needed=checkpoint.FILES)
            assert checkpoint.read_step(checkpoint.latest(run.folder)) == 5
            raise

    monkeypatch.setattr(checkpoint, "save", full)
    progress = run.train()
    assert progress.step == 20 and saved == [2, 4, 5, *[None] * 7, 18, 20]
    refused = [line for line in lines if "the checkpoint is not saved" in line]
    assert len(refused) == 7 and "MB free and it takes" in refused[0]
    assert "best model is not saved" in "\n".join(lines)
    assert checkpoint_weights(run) == checkpoint_weights(whole)
    assert metrics_of(run.folder) == metrics_of(whole.folder)


def test_a_run_killed_on_a_full_disk_goes_on_from_the_last_good_checkpoint(disk, data, whole, monkeypatch):
    values = settings(disk.folder, data)
    real, saves = checkpoint.save, []

    def save(*args, **kwargs):
        saves.append(1)
        if len(saves) == 5:
            raise KeyboardInterrupt
        real(*args, **kwargs)
        if len(saves) == 3:
            disk.fill()

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(KeyboardInterrupt):
        experiment(values).train()
    monkeypatch.setattr(checkpoint, "save", real)
    disk.free()
    run = experiment(values)
    run.train(resume=True)
    assert checkpoint_weights(run) == checkpoint_weights(whole)
    assert metrics_of(run.folder) == metrics_of(whole.folder)


def test_a_run_that_cannot_begin_says_so(disk, data):
    values = settings(disk.folder, data, epochs=1)
    values["encoder"] = {"kind": "torchvision", "name": "squeezenet1_1", "weights": "none"}
    values["features"] = {"root": str(disk.folder / "features")}
    disk.fill()
    disk.free_30_kb()
    with pytest.raises(
        UserError, match=r"features.*no space \(.*MB free\); free some, or set features\.root"
    ):
        experiment(values).train()
    assert not list(disk.folder.rglob("*.part"))
    disk.free()
    assert experiment(values).train().epoch == 1
