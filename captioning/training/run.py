"""What a training run works with besides model, data and settings: its folder, tracker, log, processes and signals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from captioning.training import checkpoint
from captioning.training.checkpoint import Progress, TrainState
from captioning.training.config import TrainingConfig
from captioning.training.distributed import World
from captioning.training.identity import Identity
from captioning.training.interruptions import Signals, tolerate_full_disk
from captioning.training.tracking import Tracker


class Run(NamedTuple):
    """Where a run writes, which process of how many this is, and its device."""

    folder: Path
    tracker: Tracker | None  # None in all processes but the first
    seed: int
    identity: Identity  # a checkpoint is resumed only with the same
    model_card: Callable[[Progress, dict[str, float]], str]
    log: Callable[[str], None]  # receives lines for the user
    world: World
    device: torch.device
    signals: Signals

    def record(self, values: dict[str, float], step: int) -> None:
        """Write numbers of this step to metrics.jsonl and wandb."""
        if self.tracker:
            self.tracker.log(values, step=step)

    def save_checkpoint(self, state: TrainState, progress: Progress, config: TrainingConfig) -> None:
        """Write a checkpoint in the first process; a full disk is logged and training goes on."""
        if self.world.first:
            bytes_needed = 3 * module_bytes(state.module)  # weights and the optimizer's two moments
            with tolerate_full_disk("the checkpoint", self.folder / "checkpoints", bytes_needed, self.log):
                checkpoint.save(self.folder, state, progress, identity=self.identity, keep=config.keep)


def module_bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
