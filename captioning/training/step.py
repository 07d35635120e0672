"""One update of the weights: accumulation, autocast, loss scaling, clipping, skipped non-finite gradients, EMA."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from captioning.errors import Diverged
from captioning.tensors import Batch
from captioning.training.batch_stats import BatchStats, Objective
from captioning.training.checkpoint import Progress, TrainState
from captioning.training.config import TrainingConfig
from captioning.training.run import Run
from captioning.utils.files import append_jsonl


class StepStats(NamedTuple):
    """One update over all processes."""

    batch: BatchStats
    grad_norm: float  # before clipping
    learning_rate: float  # of the decoder


class TrainingStep:
    """Updates the weights with a list of batches, as one large batch would.

    With several processes each gets its share of the batches and all apply the same update.
    """

    def __init__(
        self, objective: Objective, state: TrainState, config: TrainingConfig, run: Run, *, pad: int
    ):
        self.state, self.config, self.run, self.pad = state, config, run, pad
        self.parameters = [
            parameter for group in state.optimizer.param_groups for parameter in group["params"]
        ]
        self.objective: Any = objective
        self.end_update = objective.end_update
        self.no_sync: Callable[[], Any] = contextlib.nullcontext
        if run.world.size > 1:
            devices = [run.device.index] if run.device.type == "cuda" else None
            self.objective = DistributedDataParallel(objective, device_ids=devices)
            self.no_sync = self.objective.no_sync

    def __call__(self, batches: Sequence[Batch], progress: Progress, *, rate_factor: float) -> StepStats:
        """Update weights, optimizer, EMA and `progress`.

        Args:
            rate_factor: factor of the learning rates, from the schedule.

        Raises:
            Diverged: too many gradients in a row were not finite.
        """
        world = self.run.world
        optimizer, ema, scaler = self.state.optimizer, self.state.ema, self.state.scaler
        stats = self._batch_stats(batches, progress)
        for group, rate in zip(optimizer.param_groups, self.state.learning_rates, strict=True):
            group["lr"] = rate * rate_factor
        # dropout and sampling depend on (seed, step, rank) alone, so a resumed run draws the same
        torch.manual_seed(_step_seed(self.run.seed, progress.step, world.rank))
        optimizer.zero_grad(set_to_none=True)
        sums = self._accumulate_gradients(batches, stats)
        scaler.unscale_(optimizer)
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if torch.isfinite(norm):
            progress.nonfinite_steps = 0
            self._clip(norm)
            scaler.step(optimizer)
            ema.update(progress.phase_step)
            totals = dict(zip(sums, world.all_reduce(list(sums.values())), strict=True))
            self.end_update(totals)
            progress.add(totals)
        elif scaler.get_scale() <= 1:  # above 1 fp16 has overflowed, which lowers the scale
            self._skip_nonfinite(batches, float(norm), progress)
        scaler.update()
        progress.count_update()
        return StepStats(stats, float(norm), optimizer.param_groups[0]["lr"])

    def _batch_stats(self, batches: Sequence[Batch], progress: Progress) -> BatchStats:
        """Tokens, captions and images of all batches of the update, over all processes."""
        counts = [BatchStats.of(batch, self.pad) for batch in batches]
        total = self.run.world.all_reduce([sum(values) for values in zip(*counts, strict=True)])
        return BatchStats._make(total)._replace(step=progress.step, epoch=progress.epoch)

    def _accumulate_gradients(self, batches: Sequence[Batch], stats: BatchStats) -> dict[str, float]:
        """Add up the batches' gradients; the sums of this process's loss terms."""
        sums: dict[str, float] = {}
        for number, batch in enumerate(batches, 1):
            with (
                contextlib.nullcontext() if number == len(batches) else self.no_sync(),
                autocast_context(self.config, self.run.device),
            ):
                loss = self.objective(batch, stats)
            # DDP averages gradients over processes; their sum is needed
            self.state.scaler.scale(loss.value * self.run.world.size).backward()
            for name, value in [*loss.sums.items(), ("of", loss.of)]:
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def _clip(self, norm: Tensor) -> None:
        if self.config.grad_clip_norm and norm > self.config.grad_clip_norm:
            clip_grads_with_norm_(self.parameters, self.config.grad_clip_norm, norm)
        if self.config.grad_clip_value:
            clip_grad_value_(self.parameters, self.config.grad_clip_value)

    def _skip_nonfinite(self, batches: Sequence[Batch], norm: float, progress: Progress) -> None:
        """Leave the weights alone and write the images to nonfinite_steps.jsonl."""
        progress.nonfinite_steps += 1
        ids = [image_id for batch in batches for image_id in batch.image_ids]
        path = self.run.folder / "nonfinite_steps.jsonl"
        if self.run.world.first:
            with contextlib.suppress(OSError):  # a full disk; the line below names the first images
                append_jsonl(path, {"step": progress.step, "gradient": str(norm), "images": ids})
        if progress.nonfinite_steps >= self.config.max_nonfinite_steps:
            raise Diverged(
                f"step {progress.step}: the gradient is {norm}, for {progress.nonfinite_steps} updates in a row "
                f"({path} lists their images); lower training.learning_rate"
            )
        self.run.log(f"step {progress.step} is skipped: its gradient is {norm} (images {ids[:5]})")


def autocast_context(config: TrainingConfig, device: torch.device) -> torch.autocast:
    """The precision of the forward pass: `config.precision` on a GPU, float32 on a CPU."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    enabled = config.precision != "fp32" and device.type != "cpu"
    return torch.autocast(device.type, dtype=dtype if enabled else torch.bfloat16, enabled=enabled)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)
