"""The training loop: epochs of updates, each followed by validation and a checkpoint."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from captioning.captioner.captioner import Captioner, load_weights
from captioning.tensors import Batch
from captioning.training import checkpoint
from captioning.training.batch_stats import BatchStats
from captioning.training.checkpoint import Progress, TrainState
from captioning.training.config import TrainingConfig
from captioning.training.epoch_batches import Data, count_updates, epoch_updates
from captioning.training.interruptions import explain_machine_errors
from captioning.training.loss_weights import compute_loss_weights
from captioning.training.objective import build_objective
from captioning.training.run import Run
from captioning.training.step import TrainingStep
from captioning.training.validation import Interrupted, record_validation
from captioning.utils.progress import progress as progress_bar


def train(
    captioner: Captioner, data: Data, phases: Sequence[TrainingConfig], run: Run, *, resume: Path | None
) -> Progress:
    """Train the phases one after the other; the best model by `metric` is left in `folder/model`.

    A phase ends after its `epochs` or when its `patience` is used up; the next one starts from the best model so far.

    Args:
        resume: folder of a checkpoint to continue from.

    Raises:
        Stopped: a signal asked for the end; a checkpoint is on disk.
        Diverged: the gradients stayed non-finite.
        UserError: out of memory, or a loader process died.
    """
    progress = checkpoint.read_progress(resume) if resume else Progress()
    for number in range(progress.phase, len(phases)):
        config = phases[number]
        if number > progress.phase:
            progress.begin_phase()
            load_weights(captioner, run.folder / "model" / "model.safetensors")
        with explain_machine_errors(config):
            train_phase(captioner, data, config, run, progress, resume=resume)
        resume = None
    return progress


def train_phase(
    captioner: Captioner,
    data: Data,
    config: TrainingConfig,
    run: Run,
    progress: Progress,
    *,
    resume: Path | None,
) -> None:
    """Train one phase from where `progress` stands."""
    state = TrainState.create(captioner, config, run.device)
    if resume:
        checkpoint.load(resume, state)
        run.log(f"resuming in epoch {progress.epoch + 1}, after step {progress.step}")
    weights = compute_loss_weights(data.captions, captioner.vocabulary, config)
    objective = build_objective(
        captioner,
        config,
        ids=list(data.ids),
        captions=data.captions,
        weights=weights,
        seed=run.seed,
        log=run.log,
    )
    step = TrainingStep(objective, state, config, run, pad=captioner.vocabulary.pad)
    # the schedule uses the first epoch's number of updates; with max_tokens, epochs differ by a few
    steps_per_epoch = count_updates(data, config, seed=run.seed, epoch=progress.epochs_before)

    while progress.epoch < config.epochs and not progress.done:
        updates = epoch_updates(
            data, config, run, progress, pad=captioner.vocabulary.pad, caption_weights=weights.captions
        )
        total = count_updates(data, config, seed=run.seed, epoch=progress.epochs_before + progress.epoch)
        captioner.train()
        throughput = train_epoch(updates, step, progress, total=total, steps_per_epoch=steps_per_epoch)
        if run.tracker:
            run.tracker.log_timings(throughput.as_metrics(run.device), step=progress.step)

        validate = (progress.epoch + 1) % config.validate_every == 0 or progress.epoch + 1 == config.epochs
        lines = (
            validate_epoch(captioner, data, state, config, run, progress) if validate else ["no validation"]
        )
        run.log(
            f"epoch {progress.epoch + 1:2d}/{config.epochs}  train loss {progress.epoch_loss:.3f}  {lines[0]}  "
            f"{(time.perf_counter() - throughput.began) / 60:.1f} min  {throughput.rate}, "
            f"{100 * throughput.waited / throughput.seconds:.1f} % waiting for data"
        )
        for line in lines[1:]:
            run.log(line)
        progress.end_epoch(config.epochs)
        run.save_checkpoint(state, progress, config)


def train_epoch(
    updates: Iterable[list[Batch]],
    step: TrainingStep,
    progress: Progress,
    *,
    total: int,
    steps_per_epoch: int,
) -> Throughput:
    """Train on the rest of an epoch of `total` updates."""
    config, run = step.config, step.run
    throughput = Throughput()
    bar: Any = progress_bar(
        total=total,
        initial=progress.epoch_step,
        desc=f"epoch {progress.epoch + 1}/{config.epochs}",
        unit="update",
        log=run.log,
        delay=0.1,
        disable=not run.world.first,
    )
    for batches in throughput.timed(updates):
        rate_factor = config.schedule.factor(
            progress.phase_step, steps_per_epoch=steps_per_epoch, epochs=config.epochs, scores=progress.scores
        )
        stats = step(batches, progress, rate_factor=rate_factor)
        throughput.add(stats.batch)

        losses = progress.mean_losses()
        bar.set_postfix_str(
            ", ".join([*(f"{name} {mean:.3f}" for name, mean in losses.items()), throughput.rate]),
            refresh=False,
        )
        bar.update()
        if progress.step % config.log_every == 0:
            run.record(
                {
                    **{f"train/{name}": mean for name, mean in losses.items()},
                    "train/grad_norm": stats.grad_norm,
                    "train/learning_rate": stats.learning_rate,
                },
                progress.step,
            )
            progress.sums = {}

        stop = run.world.any(run.signals.caught is not None)
        # the end of an epoch is saved after its validation
        due = config.save_every and progress.step % config.save_every == 0 and progress.epoch_step < total
        if stop or due:
            run.save_checkpoint(step.state, progress, config)
        if stop:
            raise run.signals.stopped()
    bar.close()
    throughput.ended = time.perf_counter()
    progress.seconds += throughput.seconds
    return throughput


def validate_epoch(
    captioner: Captioner, data: Data, state: TrainState, config: TrainingConfig, run: Run, progress: Progress
) -> list[str]:
    """Validate the EMA weights (or the weights, without EMA) and keep the best model.

    Returns:
        Lines for the log: the scores, then some captions.
    """
    began = time.perf_counter()
    captioner.eval()
    try:
        with state.ema.applied():
            validation = data.validator(
                captioner, run.device, world=run.world, signals=run.signals, log=run.log
            )
            lines = record_validation(captioner, validation, data.validator.records, config, run, progress)
    except Interrupted:
        run.save_checkpoint(state, progress, config)  # the resumed run validates this epoch first
        raise run.signals.stopped() from None
    progress.seconds += time.perf_counter() - began
    return lines


@dataclass
class Throughput:
    """Speed of training within an epoch, without validation."""

    captions: float = 0.0
    tokens: float = 0.0
    waited: float = 0.0  # seconds in which no batch was ready
    began: float = field(default_factory=time.perf_counter)
    ended: float | None = None

    def timed(self, updates: Iterable[list[Batch]]) -> Iterator[list[Batch]]:
        """The updates, with the time spent waiting for them added to `waited`."""
        asked = time.perf_counter()
        for batches in updates:
            self.waited += time.perf_counter() - asked
            yield batches
            asked = time.perf_counter()

    def add(self, batch: BatchStats) -> None:
        self.captions, self.tokens = self.captions + batch.captions, self.tokens + batch.tokens

    @property
    def seconds(self) -> float:
        return (self.ended or time.perf_counter()) - self.began

    @property
    def rate(self) -> str:
        return f"{self.captions / self.seconds:.0f} captions/s"

    def as_metrics(self, device: torch.device) -> dict[str, float]:
        seconds = self.seconds
        return {
            "speed/captions_per_s": self.captions / seconds,
            "speed/tokens_per_s": self.tokens / seconds,
            "speed/waiting_share": self.waited / seconds,
            "speed/seconds": seconds,
            **({} if (memory := peak_memory(device)) is None else {"speed/memory_mb": memory / 2**20}),
        }


def peak_memory(device: torch.device) -> int | None:
    """Most bytes allocated so far: by torch on a CUDA GPU, else by the whole process; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
