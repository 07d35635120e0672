"""A training run as one process of several: started by torchrun in `test_parallel.py`, with a file of settings."""

import json
import sys
from pathlib import Path

from captioning.captioner.captioner import Captioner
from captioning.config import parse
from captioning.errors import run_command
from captioning.experiment import Experiment


def main() -> int:
    with open(sys.argv[1], encoding="utf-8") as file:
        experiment = Experiment(parse(json.load(file), where="test"), log=lambda _: None)
    trained: list[Captioner] = []
    build = experiment.build_captioner
    experiment.build_captioner = lambda words: trained.append(build(words)) or trained[-1]  # type: ignore[method-assign]
    experiment.train()
    own = [each.double().nan_to_num().sum().item() for each in trained[0].state_dict().values()]
    every = experiment.world.gather([own])
    if any(other != own for other in every):
        raise RuntimeError("the processes' weights differ")
    experiment.world.leave()
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    if any("gloo" in thread for thread in threads):  # one that ends with the interpreter may abort it
        raise RuntimeError(f"left behind: {threads}")
    return 0


if __name__ == "__main__":
    run_command(main)
