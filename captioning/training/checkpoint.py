"""A run's state on disk: weights, average, optimizer, random numbers, progress. Safetensors and JSON, no pickle."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from captioning.captioner import load_weights, save_weights
from captioning.errors import UserError
from captioning.files import (
    check_manifest,
    read_json,
    recovered,
    replacing_folder,
    write_json,
    write_manifest,
)
from captioning.training.average import Average


@dataclass
class Progress:
    """Where a run stands: epochs finished, steps done, what validation has shown."""

    epoch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    stale: int = 0
    seconds: float = 0.0
    done: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


def save(
    folder: Path,
    *,
    module: nn.Module,
    average: Average,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    experiment: str,
) -> None:
    """Write the checkpoint folder, whole or not at all. `experiment` is the fingerprint of the settings."""
    state = optimizer.state_dict()
    moments = {
        f"{number}.{key}": value for number, entry in state["state"].items() for key, value in entry.items()
    }
    with replacing_folder(folder) as part:
        save_weights(module.state_dict(), part / "model.safetensors")
        save_weights(average.state_dict(), part / "average.safetensors")
        save_weights({**moments, **_random()}, part / "optimizer.safetensors")
        write_json(
            part / "progress.json",
            {
                **asdict(progress),
                "experiment": experiment,
                "optimizer": [_plain(group) for group in state["param_groups"]],
            },
        )
        write_manifest(part)


def load(
    folder: Path, *, module: nn.Module, average: Average, optimizer: torch.optim.Optimizer, experiment: str
) -> Progress:
    """Fill `module`, `average`, `optimizer` and the random number generators; the progress made.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it is of other settings.
    """
    check_manifest(_existing(folder))
    kept = read_json(folder / "progress.json")
    if kept.pop("experiment") != experiment:
        raise UserError(
            f"{folder}: made with other settings than these; resume with the run's own config.yaml"
        )
    load_weights(module, folder / "model.safetensors")
    average.load_state_dict(load_file(folder / "average.safetensors"))
    tensors = load_file(folder / "optimizer.safetensors")
    torch.set_rng_state(tensors.pop("random.cpu"))
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors.pop("random.cuda"))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        moments.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": kept.pop("optimizer")})
    return Progress(**kept)


def steps_done(run: Path) -> int:
    """The step of a run's last checkpoint. Raises UserError where there is none."""
    return int(read_json(_existing(run / "checkpoints" / "last") / "progress.json")["step"])


def _existing(folder: Path) -> Path:
    if not (recovered(folder) / "manifest.json").is_file():
        raise UserError(f"{folder}: no checkpoint to resume from; start without --resume")
    return folder


def _random() -> dict[str, Tensor]:
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in group.items()
        if isinstance(value, (int, float, str, bool, list, tuple, type(None)))
    }
