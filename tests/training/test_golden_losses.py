"""Fifty updates of each phase against stored losses, which a refactoring must not change.

`python tests/training/test_golden_losses.py` stores them anew, after a change that should move them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.helpers.training import experiment, metrics_of, tiny_settings

STORED = Path(__file__).with_name("golden_losses.json")
KINDS = ("soft_attention_lstm", "transformer")


def losses(folder: Path, kind: str) -> dict[str, list[float]]:
    """What fifty updates of cross-entropy and then of self-critical training log, an entry an update."""
    values = tiny_settings(folder, kind, kind, epochs=10)  # of five updates each
    values["training"] |= {"log_every": 1, "validate_every": 10}
    reward = {"self_critical": {"samples": 3, "max_length": 12}, "learning_rate": 1e-3}
    values["phases"] = [{**values["training"], **reward}]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order
    try:
        run = experiment(values)
        run.train()
    finally:
        torch.set_num_threads(threads)
    lines = metrics_of(run.folder)
    steps = [line for line in lines if "train/loss" in line]
    first, second = steps[:50], steps[50:]
    return {
        "cross_entropy": [line["train/loss"] for line in first],
        "reward": [line["train/reward"] for line in second],
        "length": [line["train/length"] for line in second],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_updates_of_each_phase_are_as_stored(tmp_path, kind):
    stored, now = json.loads(STORED.read_text())[kind], losses(tmp_path, kind)
    assert {name: len(values) for name, values in now.items()} == dict.fromkeys(stored, 50)
    # other processors, and other orders of sums, round differently; it adds up over fifty updates
    assert now["cross_entropy"] == pytest.approx(stored["cross_entropy"], rel=2e-3)
    assert now["cross_entropy"][:5] == pytest.approx(stored["cross_entropy"][:5], rel=2e-6)
    for name, slack in (("reward", 0.02), ("length", 0.5)):  # and may tip a draw
        mean = {key: sum(each) / 50 for key, each in (("now", now[name]), ("stored", stored[name]))}
        assert mean["now"] == pytest.approx(mean["stored"], abs=slack)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = {kind: losses(Path(folder), kind) for kind in KINDS}
    rounded = {
        kind: {name: [round(value, 7) for value in values] for name, values in each.items()}
        for kind, each in found.items()
    }
    STORED.write_text(json.dumps(rounded, indent=1) + "\n")
    print(f"stored in {STORED}")
