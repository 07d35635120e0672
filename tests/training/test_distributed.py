"""Two processes (gloo, started by torchrun) train and validate as one does."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from captioning.training.distributed import World
from tests.helpers.training import eventually, experiment, metrics_of, tiny_settings

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


def start_bare(config: Path, port: int, processes: int):
    """Processes that only environment variables bring together, as a cluster's own launcher starts them."""
    own = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests/end_to_end/two_processes.py"), str(config)],
            env={**os.environ, **own, "WORLD_SIZE": str(processes), "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def settings(folder, name, *, decoder=None, **training):
    """A file of settings without random draws and BatchNorm, so that two processes compute what one does."""
    values = tiny_settings(folder, name, epochs=4)
    values["encoder"] = {"kind": "torchvision", "name": "squeezenet1_1", "grid": 2, "weights": "none"}
    values["features"] = {"root": str(folder / "features"), "dtype": "float32"}
    values["decoder"] = decoder or {**values["decoder"], "dropout": 0.0}
    values["training"] |= {"log_every": 1, "doubly_stochastic": 0.5, **training}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(values))
    return path, folder / "runs" / name


def test_shards_are_even_and_complete():
    items = list(range(7))
    for size in (1, 2, 3):
        parts = [list(World(rank, size).shard(items)) for rank in range(size)]
        assert sorted(itertools.chain(*parts)) == items and max(map(len, parts)) - min(map(len, parts)) <= 1


def run_two_processes(folder, name, **options):
    """The folder of a run by two processes."""
    path, run = settings(folder, name, **options)
    process = start(path)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return run


def run_one_process(folder, name, **options):
    """The folder of the same run, in this process."""
    path, run = settings(folder, name, **options)
    experiment(json.loads(path.read_text())).train()
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def whole(folder):
    """A run by two processes. 24 images in batches of 5 leave one of 4: shares of 3 + 2 and 2 + 2."""
    return run_two_processes(folder, "whole", save_every=1)


def assert_close(one, two, *, rel):
    for entry, other in zip(one, two, strict=True):
        assert entry == pytest.approx(other, rel=rel, abs=1e-6), entry["step"]


def test_two_processes_train_as_one(folder, whole):
    one, two = metrics_of(run_one_process(folder, "one", save_every=1)), metrics_of(whole)
    assert len(one) == 24  # 20 steps and 4 validations
    assert_close(one, two, rel=1e-6)


def test_an_idle_process_changes_nothing(folder):
    """Batches of one image leave one process without any."""
    runs = [
        run(folder, f"idle{n}", batch_size=1, epochs=1)
        for n, run in enumerate((run_one_process, run_two_processes))
    ]
    one, two = map(metrics_of, runs)
    assert len(one) == 25  # 24 steps and 1 validation
    assert_close(one, two, rel=1e-6)


def test_two_processes_with_weights_and_token_batches_train_as_one(folder):
    options = {
        "caption_weights": {},
        "word_weights": {"kind": "effective_number", "beta": 0.9},
        "r_drop": 1.0,
        "max_tokens": 300,
        "epochs": 2,
    }
    runs = [
        run(folder, f"weights{n}", **options) for n, run in enumerate((run_one_process, run_two_processes))
    ]
    one, two = map(metrics_of, runs)
    assert len(one) > 8
    assert_close(one, two, rel=1e-5)


def test_two_processes_learn_regions_from_the_reward_as_one(folder):
    """Hard attention under self-critical training: every weight has a gradient, and the same regions are sampled."""
    hard = {"kind": "hard_attention_lstm", "embedding": 8, "hidden": 16, "attention_size": 8, "dropout": 0.0}
    options = {"self_critical": {"samples": 3, "max_length": 12}, "epochs": 1, "doubly_stochastic": 0.0}
    one, two = (
        metrics_of(run(folder, f"regions{n}", decoder=hard, **options))
        for n, run in enumerate((run_one_process, run_two_processes))
    )
    assert len(one) == 6  # 5 steps and 1 validation
    assert_close(one, two, rel=1e-5)


def test_a_killed_process_restarts_and_the_run_ends_the_same(folder, whole):
    path, cut = settings(folder, "cut", save_every=1)
    process = start(path, restarts=1)
    deadline = time.monotonic() + 200
    while not (cut / "checkpoints" / "last").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    ranks = subprocess.run(["pgrep", "-f", f"two_processes.py {path}"], capture_output=True, text=True).stdout
    victims = [int(pid) for pid in ranks.split() if int(pid) != process.pid]
    os.kill(max(victims), signal.SIGKILL)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (run / "checkpoints" / "last" / name for run in (cut, whole))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(("dead", "processes"), [(0, 2), (1, 3)])
def test_the_others_name_a_process_that_died(folder, dead, processes):
    path, run = settings(folder, f"dead{dead}", save_every=1, epochs=200)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = start_bare(path, port, processes)
    try:
        assert eventually(lambda: (run / "checkpoints" / "last").exists())
        ranks[dead].kill()
        for rank, process in enumerate(ranks):
            _, errors = process.communicate(timeout=120)
            if rank != dead:
                (said,) = [line for line in errors.splitlines() if line.startswith("error: ")]
                host = socket.gethostname()
                named, noticed = said.removeprefix("error: ").split(
                    " ended or cannot be reached (noticed by "
                )
                assert f"rank {dead} on {host}" in named and f"rank {rank} " not in named
                assert noticed.startswith(f"rank {rank} on {host})") and process.returncode == 2, errors
    finally:
        for process in ranks:
            process.kill()
