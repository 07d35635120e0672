"""Two processes (gloo, by torchrun) train and validate as one does."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from captioning.training.distributed import World
from tests.helpers.training import metrics_of, tiny_settings

ROOT = Path(__file__).resolve().parents[2]


def start(config: Path, *, processes=2, restarts=0):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--max-restarts", str(restarts), "--standalone", str(ROOT / "tests/end_to_end/two_processes.py"), str(config),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def settings(folder, name, **training):
    """Nothing drawn and no BatchNorm: what one process computes, two must."""
    values = tiny_settings(folder, name, epochs=4)
    values["encoder"] = {"kind": "torchvision", "name": "squeezenet1_1", "grid": 2, "weights": "none"}
    values["features"] = {"root": str(folder / "features"), "dtype": "float32"}
    values["decoder"]["dropout"] = 0.0
    values["training"] |= {"log_every": 1, "doubly_stochastic": 0.5, **training}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(values))
    return path, folder / "runs" / name


def lines(run):
    return metrics_of(run)


def test_shares_put_together_are_the_whole():
    items = list(range(7))
    for size in (1, 2, 3):
        parts = [list(World(rank, size).shard(items)) for rank in range(size)]
        assert sorted(itertools.chain(*parts)) == items and max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("images", [5, 1])
def test_two_processes_train_as_one(tmp_path, images):
    """24 images in batches of 5 leave one of 4: shares of 3 + 2 and 2 + 2; batches of 1 leave one process idle."""
    epochs = 4 if images == 5 else 1
    runs = []
    for name, processes in (("one", 1), ("two", 2)):
        path, run = settings(tmp_path, name, batch_size=images, epochs=epochs)
        process = start(path, processes=processes)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
        runs.append(run)
    one, two = map(lines, runs)
    assert len(one) == len(two) == (24 if images == 5 else 25)  # 20 steps and 4 validations; 24 steps and 1
    for mine, other in zip(one, two, strict=True):
        assert mine == pytest.approx(other, rel=1e-6, abs=1e-6), mine["step"]


def test_two_processes_weigh_and_fill_batches_as_one_does(tmp_path):
    weighing = {
        "caption_weights": {},
        "word_weights": {"kind": "effective_number", "beta": 0.9},
        "r_drop": 1.0,
    }
    runs = []
    for name, processes in (("one", 1), ("two", 2)):
        path, run = settings(tmp_path, name, max_tokens=300, epochs=2, **weighing)
        process = start(path, processes=processes)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
        runs.append(run)
    one, two = map(lines, runs)
    assert len(one) == len(two) > 8
    for mine, other in zip(one, two, strict=True):
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-6), mine["step"]


def test_a_killed_process_restarts_and_ends_as_if_nothing_had_been(tmp_path):
    path, whole = settings(tmp_path, "whole", save_every=1)
    process = start(path)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    path, cut = settings(tmp_path, "cut", save_every=1)
    process = start(path, restarts=1)
    deadline = time.monotonic() + 200
    while not (cut / "checkpoints" / "last").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    ranks = subprocess.run(["pgrep", "-f", f"two_processes.py {path}"], capture_output=True, text=True).stdout
    victims = [int(each) for each in ranks.split() if int(each) != process.pid]
    os.kill(max(victims), signal.SIGKILL)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (cut / "checkpoints/last" / name).read_bytes() == (
            whole / "checkpoints/last" / name
        ).read_bytes()
