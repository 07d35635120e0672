"""A run's state on disk: weights, average, optimizer, progress. Safetensors and JSON, no pickle.

No random numbers: what is drawn is a function of the seed and of the place in the run.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from captioning.captioner.captioner import Captioner, load_weights, save_weights
from captioning.errors import UserError
from captioning.training.config import TrainingConfig
from captioning.training.ema import EMA
from captioning.utils.files import (
    check_manifest,
    fsync_folder,
    new_folder,
    read_json,
    write_json,
    write_manifest,
)


@dataclass
class Progress:
    """Where a run stands. What is in it decides how it goes on; `seconds` alone is for the reader."""

    phase: int = 0
    epoch: int = 0  # epochs of the phase that are finished
    epochs_before: int = 0  # of earlier phases
    batch: int = 0  # updates of this epoch
    step: int = 0  # updates of the run
    phase_step: int = 0  # and of the phase
    nonfinite_steps: int = 0  # the last so many had no finite gradient
    sums: dict[str, float] = field(default_factory=dict)  # of the losses' parts since they were last logged
    best: float | None = None
    best_epoch: int = 0
    stale: int = 0
    scores: list[float] = field(default_factory=list)  # of the phase's validations
    seconds: float = 0.0
    done: bool = False  # the phase
    history: list[dict[str, Any]] = field(default_factory=list)

    def begin_phase(self) -> None:
        self.phase, self.epochs_before = self.phase + 1, self.epochs_before + self.epoch
        self.epoch = self.phase_step = self.nonfinite_steps = self.stale = 0
        self.scores, self.sums, self.done = [], {}, False

    def add(self, parts: dict[str, float]) -> None:
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Of each part since the last call, per what it counts."""
        count = self.sums.pop("of", 0.0)
        means = {name: value / count for name, value in self.sums.items()} if count else {}
        self.sums = {}
        return means


class State(NamedTuple):
    """What training changes, besides its progress."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: EMA
    scaler: torch.amp.GradScaler

    @classmethod
    def of(cls, captioner: Captioner, config: TrainingConfig, device: torch.device) -> State:
        groups = [
            {"params": list(captioner.decoder.parameters())},
            *captioner.encoder.parameter_groups(config.learning_rate),
        ]
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        return cls(
            module=captioner,
            optimizer=kind(
                groups,
                lr=config.learning_rate,
                betas=config.betas,
                weight_decay=config.weight_decay,
                fused=True,
            ),
            average=EMA(captioner, config.ema_decay),
            scaler=torch.amp.GradScaler(
                device.type, enabled=config.precision == "fp16" and device.type != "cpu"
            ),
        )


def save(run: Path, state: State, progress: Progress, *, experiment: str, keep: int) -> None:
    """Write `run/checkpoints/last`, whole or not at all; the `keep` - 1 before it stay as before-1, before-2 ...

    Args:
        experiment: fingerprint of the settings.

    Raises:
        OSError: the disk is full; what was there is still there, and nothing half-written.
    """
    folder = run / "checkpoints"
    optimizer = state.optimizer.state_dict()
    moments = {
        f"{number}.{key}": value
        for number, entry in optimizer["state"].items()
        for key, value in entry.items()
    }
    with new_folder(folder / ".part") as part:
        save_weights(state.module.state_dict(), part / "model.safetensors")
        save_weights(state.average.state_dict(), part / "ema.safetensors")
        save_weights(moments, part / "optimizer.safetensors")
        write_json(
            part / "progress.json",
            {
                **asdict(progress),
                "experiment": experiment,
                "optimizer": [_plain(group) for group in optimizer["param_groups"]],
                "scaler": state.scaler.state_dict(),
            },
        )
        write_manifest(part)
    # at any moment one of these names holds a complete checkpoint
    names = [folder / "last", *(folder / f"before-{age}" for age in range(1, keep))]
    gone = folder / ".gone"
    shutil.rmtree(gone, ignore_errors=True)
    if names[-1].exists():
        names[-1].rename(gone)
    for newer, older in reversed(list(itertools.pairwise(names))):
        if newer.exists():
            newer.rename(older)
    (folder / ".part").rename(folder / "last")
    fsync_folder(folder)
    shutil.rmtree(gone, ignore_errors=True)


def progress_of(folder: Path, experiment: str) -> Progress:
    """The progress of the checkpoint `folder`, of `latest`. Raises UserError where it is of other settings."""
    return _progress(folder, experiment)[0]


def _progress(folder: Path, experiment: str | None) -> tuple[Progress, dict[str, Any]]:
    kept = read_json(folder / "progress.json")
    rest = {name: kept.pop(name) for name in ("experiment", "optimizer", "scaler")}
    if experiment is not None and rest["experiment"] != experiment:
        raise UserError(
            f"{folder}: made with other settings than these; resume with the run's own config.yaml"
        )
    return Progress(**kept), rest


def load(folder: Path, state: State) -> None:
    """Fill `state` from the checkpoint `folder`, of `latest`."""
    _, rest = _progress(folder, None)
    load_weights(state.module, folder / "model.safetensors")
    state.average.load_state_dict(load_file(folder / "ema.safetensors"))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load_file(folder / "optimizer.safetensors").items():
        number, key = name.split(".", 1)
        moments.setdefault(int(number), {})[key] = tensor
    state.optimizer.load_state_dict({"state": moments, "param_groups": rest["optimizer"]})
    state.scaler.load_state_dict(rest["scaler"])


def latest(run: Path, *, log: Callable[[str], None] = lambda _: None) -> Path:
    """The newest checkpoint whose files are as they were written; `log` is told of newer ones that are not.

    Raises:
        UserError: there is none.
    """
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{folder / 'last'}: no checkpoint to resume from; start without --resume")
    problems = []
    # `.part` is whole where its manifest is: a crash struck before it got its name
    names = [".part", "last", *sorted(each.name for each in folder.glob("before-*")), ".gone"]
    for name in names:
        if not (folder / name / "manifest.json").is_file():
            continue
        try:
            check_manifest(folder / name)
        except UserError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            log(f"{problem}; going on from {folder / name}")
        return folder / name
    if problems:
        raise UserError(f"{problems[0]}; no earlier checkpoint is whole either, start anew")
    raise UserError(f"{folder / 'last'}: no checkpoint to resume from; start without --resume")


def begun(run: Path) -> bool:
    """Whether there is a checkpoint, whole or not. A run killed before its first has none."""
    return any((run / "checkpoints").glob("*/manifest.json"))


def steps_done(folder: Path) -> int:
    """The step of the checkpoint `folder`."""
    return int(read_json(folder / "progress.json")["step"])


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in group.items()
        if isinstance(value, (int, float, str, bool, list, tuple, type(None)))
    }
