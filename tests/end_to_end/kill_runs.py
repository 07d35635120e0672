"""Kill a training run at random moments, saving included, and resume it, until it ends: is it the same to the byte?

    python tests/kill_runs.py --kills 25
    python tests/kill_runs.py --kills 4 --only transformer --seed 1

Prints a table: per configuration the kills, how many struck while a checkpoint was being written, and whether
weights, optimizer and metrics.jsonl equal those of a run that nobody touched. Exit code 1 if any differ.
For each attempt a process that has torch loaded forks, so that a kill costs a second and not ten.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from captioning.training.checkpoint import has_checkpoint
from tests.helpers.training import experiment, tiny_settings

FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


class Result(NamedTuple):
    kills: int
    saving: int  # of them while a checkpoint was being written
    same: bool
    seconds: float


def configurations() -> dict[str, dict[str, Any]]:
    found = {}
    for decoder in ("soft_attention_lstm", "transformer"):
        for workers in (0, 2):
            found[f"{decoder}, {workers} workers"] = {"decoder": decoder, "workers": workers, "phases": []}
            found[f"{decoder}, {workers} workers, self-critical"] = {
                "decoder": decoder,
                "workers": workers,
                "phases": [{"self_critical": {"samples": 3}, "learning_rate": 1e-4, "epochs": 3}],
            }
    return found


def settings(
    folder: Path, name: str, *, decoder: str, workers: int, phases: list[dict[str, Any]]
) -> dict[str, Any]:
    values = tiny_settings(folder, name, decoder, epochs=4)
    values["training"] |= {"workers": workers, "save_every": 1, "log_every": 1}
    values["phases"] = [{**values["training"], **phase} for phase in phases]
    return values


def attempt(values: dict[str, Any], *, resume: bool) -> int:
    """Start the run in a process of its own; its number."""
    child = os.fork()
    if child:
        return child
    os.setsid()  # a group, so that its loader processes are killed with it
    torch.set_num_threads(1)
    code = 1
    try:
        experiment(values).train(resume=resume)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def kill_and_resume(
    values: dict[str, Any], *, kills: int, dice: random.Random, longest: float
) -> tuple[int, int]:
    """The kills made until the run ended by itself, and how many of them struck during a save."""
    checkpoints = Path(values["runs"], values["name"], "checkpoints")
    made = saving = 0
    while True:
        child = attempt(values, resume=has_checkpoint(checkpoints.parent))
        if made < kills:
            time.sleep(dice.uniform(0.02, longest))
            if dice.random() < 0.5:  # wait for a save to begin, and strike a little later
                deadline = time.monotonic() + longest
                while not (checkpoints / ".part").exists() and time.monotonic() < deadline:
                    time.sleep(0.0005)
                time.sleep(dice.uniform(0, 0.01))
            with contextlib.suppress(ProcessLookupError):
                struck = (checkpoints / ".part").exists()
                os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            made, saving = made + 1, saving + struck
        elif os.waitstatus_to_exitcode(status):
            raise RuntimeError(f"{values['name']}: an attempt failed by itself")
        else:
            return made, saving


def check(name: str, *, kills: int, dice: random.Random, folder: Path, **setting: Any) -> Result:
    began = time.monotonic()
    whole = settings(folder, "whole", **setting)
    started = time.monotonic()
    os.waitpid(attempt(whole, resume=False), 0)
    once = time.monotonic() - started
    made = saving = 0
    same = True
    round_ = 0
    while made < kills:  # a run may end before all kills are used up: another one then
        cut = settings(folder, f"cut{round_}", **setting)
        more, during = kill_and_resume(cut, kills=kills - made, dice=dice, longest=0.5 * once)
        made, saving, round_ = made + more, saving + during, round_ + 1
        one, other = (Path(each["runs"], each["name"]) for each in (whole, cut))
        same = same and all(
            (one / part).read_bytes() == (other / part).read_bytes()
            for part in ("metrics.jsonl", *(f"checkpoints/last/{file}" for file in FILES))
        )
        shutil.rmtree(other)
    return Result(made, saving, same, time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=25, help="of each configuration (default: 25)")
    parser.add_argument("--only", default="", help="configurations whose name has this regular expression")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    bad = 0
    print("| configuration | kills | while saving | equal to the byte | seconds |\n|---|---|---|---|---|")
    for name, setting in configurations().items():
        if not re.search(options.only, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            dice = random.Random(f"{options.seed} {name}")
            result = check(name, kills=options.kills, dice=dice, folder=Path(folder), **setting)
        bad += not result.same
        print(
            f"| {name} | {result.kills} | {result.saving} | {'yes' if result.same else 'NO'} | {result.seconds:.0f} |",
            flush=True,
        )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
