"""The training loop: load, forward, loss, backward, clip, update; then validate, keep the best, save. One page."""

from __future__ import annotations

import contextlib
import itertools
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from captioning.captioner.captioner import Captioner, load_weights
from captioning.errors import Diverged
from captioning.loaders.batches import (
    EncodedCaptions,
    Images,
    TrainingBatches,
    bucketed_batches,
    loader,
    token_batches,
)
from captioning.metrics import get_metric
from captioning.tensors import Batch
from captioning.training import checkpoint
from captioning.training.batch_stats import BatchStats
from captioning.training.checkpoint import Progress, State
from captioning.training.config import TrainingConfig
from captioning.training.distributed import World
from captioning.training.interruptions import Signals, disk_may_fill, explained
from captioning.training.loss_weights import compute_loss_weights
from captioning.training.objective import autocast_context, objective
from captioning.training.tracking import Tracker
from captioning.training.validation import Interrupted, Validation, Validator, scores_text
from captioning.utils.files import append_jsonl
from captioning.utils.packed_strings import PackedStrings


class Data(NamedTuple):
    """What the loop trains on and validates with."""

    ids: PackedStrings  # of the images of the training split
    captions: EncodedCaptions
    images: Images
    validator: Validator


class Run(NamedTuple):
    """Where a run writes, and whom it tells."""

    folder: Path
    tracker: Tracker | None  # of the first process
    seed: int
    experiment: str  # fingerprint of the settings that a checkpoint must have been made with
    card: Callable[[Progress, dict[str, float]], str]  # writes the model card
    log: Callable[[str], None]  # takes the lines that tell a person how it goes
    world: World
    device: torch.device
    signals: Signals

    def record(self, values: dict[str, float], step: int) -> None:
        if self.tracker:
            self.tracker.log(values, step=step)


def train(
    captioner: Captioner, data: Data, phases: Sequence[TrainingConfig], run: Run, *, resume: Path | None
) -> Progress:
    """Train phase after phase; the best model by `metric` is in `folder/model`.

    A phase ends when its `epochs` or its `patience` is used up; the next begins with the best model so far.

    Raises:
        Stopped: a signal asked for the end; the state is on disk.
        Diverged: the gradients stay non-finite.
        UserError: memory ran out, or a loader process died.
    """
    progress = checkpoint.progress_of(resume, run.experiment) if resume else Progress()
    for number in range(progress.phase, len(phases)):
        config = phases[number]
        if number > progress.phase:
            progress.begin_phase()
            load_weights(captioner, run.folder / "model" / "model.safetensors")
        with explained(
            images=config.batch_size, captions=config.captions_per_image, tokens=config.max_tokens
        ):
            _phase(
                captioner, data, config, run, progress, resume=resume if number == progress.phase else None
            )
        resume = None
    return progress


def _phase(
    captioner: Captioner,
    data: Data,
    config: TrainingConfig,
    run: Run,
    progress: Progress,
    *,
    resume: Path | None,
) -> None:
    world, device = run.world, run.device
    state = State.of(captioner, config, device)
    optimizer, average, scaler = state.optimizer, state.average, state.scaler
    rates = [group["lr"] for group in optimizer.param_groups]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if resume:
        checkpoint.load(resume, state)
        run.log(f"resuming in epoch {progress.epoch + 1}, after step {progress.step}")
    ids = list(data.ids)
    weights = compute_loss_weights(data.captions, captioner.vocabulary, config)
    goal: Any = objective(
        captioner, config, ids=ids, captions=data.captions, weights=weights, seed=run.seed, log=run.log
    )
    if world.size > 1:
        goal = DistributedDataParallel(goal, device_ids=[device.index] if device.type == "cuda" else None)
    # of the first epoch, for all: with batches by tokens an epoch may have a few more or less
    per_epoch = _count(_batches(data, config, run.seed, progress.epochs_before), config)
    while progress.epoch < config.epochs and not progress.done:
        began, waited, captions, tokens = time.perf_counter(), 0.0, 0.0, 0.0
        updates = _updates(
            data, config, run, progress, pad=captioner.vocabulary.pad, weights=weights.captions
        )
        captioner.train()
        bar = tqdm(
            initial=progress.batch, total=updates.total, desc=f"epoch {progress.epoch + 1}/{config.epochs}",
            leave=False, disable=None if world.first else True,
        )  # fmt: skip
        for _ in range(progress.batch, updates.total):
            asked = time.perf_counter()
            batches = list(itertools.islice(updates.batches, config.accumulate))
            waited += time.perf_counter() - asked
            mine = [BatchStats.of(each, captioner.vocabulary.pad) for each in batches]
            *total, stop = world.all_reduce(
                [*map(sum, zip(*mine, strict=True)), run.signals.caught is not None]
            )
            update = BatchStats._make(total)._replace(step=progress.step, epoch=progress.epoch)
            factor = config.schedule.factor(
                progress.phase_step,
                steps_per_epoch=per_epoch,
                epochs=config.epochs,
                scores=progress.scores,
            )
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            torch.manual_seed(_seed(run.seed, progress.step, world.rank))  # of dropout, sampling: resumable
            optimizer.zero_grad(set_to_none=True)
            parts: dict[str, float] = {}
            for batch, last in zip(batches, [*[False] * (len(batches) - 1), True], strict=True):
                with (
                    contextlib.nullcontext() if last or world.size == 1 else goal.no_sync(),
                    autocast_context(config, device),
                ):
                    loss = goal(batch, update)
                scaler.scale(loss.value * world.size).backward()  # which averages gradients over processes
                for name, value in [*loss.sums.items(), ("of", loss.of)]:
                    parts[name] = parts.get(name, 0.0) + float(value)
            scaler.unscale_(optimizer)
            norm = get_total_norm([each.grad for each in trained if each.grad is not None])
            if torch.isfinite(norm):
                progress.nonfinite_steps = 0
                if config.grad_clip_norm and norm > config.grad_clip_norm:
                    clip_grads_with_norm_(trained, config.grad_clip_norm, norm)
                if config.grad_clip_value:
                    clip_grad_value_(trained, config.grad_clip_value)
                scaler.step(optimizer)
                average.update(progress.phase_step)
                progress.add(dict(zip(parts, world.all_reduce(list(parts.values())), strict=True)))
            elif scaler.get_scale() <= 1:  # above it fp16 has overflowed, and finds its scale by that
                skip_nonfinite(batches, float(norm), config, run, progress)
            scaler.update()
            progress.step, progress.phase_step = progress.step + 1, progress.phase_step + 1
            progress.batch += 1
            captions, tokens = captions + update.captions, tokens + update.tokens
            bar.update()
            if progress.step % config.log_every == 0:
                means = {f"train/{name}": value for name, value in progress.means().items()}
                run.record(
                    {**means, "train/gradient": float(norm), "train/rate": rates[0] * factor}, progress.step
                )
                bar.set_postfix_str(" ".join(f"{name[6:]} {value:.3f}" for name, value in means.items()))
            stop = stop or (world.size == 1 and run.signals.caught is not None)  # several must agree on it
            due = (
                config.save_every
                and progress.step % config.save_every == 0
                and progress.batch < updates.total
            )
            if stop or due:  # an epoch's end saves for itself
                _save(state, config, run, progress)
            if stop:
                raise run.signals.stopped()
        bar.close()
        elapsed = time.perf_counter() - began
        progress.seconds += elapsed
        if run.tracker:
            run.tracker.time(
                {
                    "speed/captions_per_s": captions / elapsed,
                    "speed/tokens_per_s": tokens / elapsed,
                    "speed/waiting_share": waited / elapsed,
                    "speed/seconds": elapsed,  # of this epoch, validation left out
                    "speed/memory_mb": peak_memory(device) / 2**20,
                },
                step=progress.step,
            )
        if (progress.epoch + 1) % config.validate_every == 0 or progress.epoch + 1 == config.epochs:
            captioner.eval()
            began = time.perf_counter()
            pace = f"{captions / elapsed:.0f} captions/s, {100 * waited / elapsed:.1f} % waiting for data"
            try:
                with average.in_place():
                    shown = data.validator(captioner, device, world=world, signals=run.signals)
                    record_validation(captioner, shown, data, config, run, progress, pace)
            except Interrupted:
                _save(state, config, run, progress)  # the epoch is trained; it is validated when it goes on
                raise run.signals.stopped() from None
            progress.seconds += time.perf_counter() - began
        progress.epoch, progress.batch = progress.epoch + 1, 0
        progress.done = progress.done or progress.epoch >= config.epochs
        _save(state, config, run, progress)


class _Updates(NamedTuple):
    batches: Iterator[Batch]  # this process's share of each, `accumulate` an update
    total: int  # updates of the epoch


def _updates(
    data: Data,
    config: TrainingConfig,
    run: Run,
    progress: Progress,
    *,
    pad: int,
    weights: np.ndarray | None,
) -> _Updates:
    """The epoch's batches from the update on that comes next: a function of (seed, phase, epoch) and that."""
    epoch = progress.epochs_before + progress.epoch
    batches = _batches(data, config, run.seed, epoch)
    count = _count(batches, config)
    left = batches[progress.batch * config.accumulate :]
    # a process that gets nothing of a small batch computes with one image that does not count
    shares = [part if len(part := run.world.shard(each)) else each[:1] for each in left]
    dataset = TrainingBatches(
        data.ids,
        data.captions,
        data.images,
        width=config.captions_per_image,
        pad=pad,
        seed=run.seed,
        epoch=epoch,
        weights=weights,
    )
    loaded = loader(dataset, shares, workers=config.workers, pin_memory=run.device.type == "cuda")
    idle = (run.world.rank >= len(each) for each in left)
    return _Updates(
        (_nothing(batch, pad) if no else batch for batch, no in zip(loaded, idle, strict=True)), count
    )


def _batches(data: Data, config: TrainingConfig, seed: int, epoch: int) -> list[np.ndarray]:
    if config.max_tokens:
        return token_batches(
            data.captions, tokens=config.max_tokens, width=config.captions_per_image, seed=seed, epoch=epoch
        )
    return bucketed_batches(data.captions, size=config.batch_size, seed=seed, epoch=epoch)


def _count(batches: Sequence[np.ndarray], config: TrainingConfig) -> int:
    """Updates that these batches make."""
    return -(-len(batches) // config.accumulate)


def _nothing(batch: Batch, pad: int) -> Batch:
    return batch._replace(image_ids=[], ids=torch.full_like(batch.ids, pad), tokens=0)


def _seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def skip_nonfinite(
    batches: Sequence[Batch], norm: float, config: TrainingConfig, run: Run, progress: Progress
) -> None:
    """Pass over an update without a finite gradient; too many in a row end the run."""
    progress.nonfinite_steps += 1
    ids = [image for batch in batches for image in batch.image_ids]
    path = run.folder / "nonfinite_steps.jsonl"
    if run.world.first:
        append_jsonl(path, {"step": progress.step, "gradient": str(norm), "images": ids})
    if progress.nonfinite_steps >= config.max_nonfinite_steps:
        raise Diverged(
            f"step {progress.step}: the gradient is {norm}, for {progress.nonfinite_steps} updates in a row "
            f"({path} lists their images); lower training.learning_rate"
        )
    run.log(f"step {progress.step} is skipped: its gradient is {norm} (images {ids[:5]})")


def record_validation(
    captioner: Captioner,
    shown: Validation,
    data: Data,
    config: TrainingConfig,
    run: Run,
    progress: Progress,
    pace: str,
) -> None:
    """Note what validation has shown, keep the model if it is the best yet, and tell."""
    scores = shown.scores
    metric = get_metric(config.metric)
    score, sign = scores[metric.name], 1 if metric.higher_is_better else -1
    better = progress.best is None or sign * score > sign * progress.best
    progress.scores.append(sign * score)
    epoch = progress.epochs_before + progress.epoch + 1
    if better:
        progress.best, progress.best_epoch, progress.stale = score, epoch, 0
        if run.world.first:
            folder = run.folder / "model"
            with disk_may_fill("the best model", folder, lambda: _size(captioner), run.log):
                captioner.save(folder, card=run.card(progress, scores))
    else:
        progress.stale += 1
    progress.done = progress.stale >= config.patience
    progress.history.append({"epoch": epoch, "step": progress.step, **scores})
    run.record({f"val/{name}": value for name, value in scores.items()}, progress.step)
    rows: list[list[Path | str]] = [
        [Path(record.path), record.captions[0], prediction.caption]
        for record, prediction in zip(
            data.validator.records, shown.predictions[: config.samples], strict=False
        )
    ]
    if run.tracker:
        run.tracker.summary(
            f"val/{metric.name}", progress.best or 0.0, best="max" if metric.higher_is_better else "min"
        )
        run.tracker.table("samples", ["image", "reference", "prediction"], rows, step=progress.step)
    run.log(
        f"epoch {epoch:3d}  val loss {scores['loss']:.3f}  {scores_text(scores, metric)}  {pace}"
        f"{'  *best' if better else ''}"
    )
    for _, reference, caption in rows[:3]:
        run.log(f"           {caption!r}  ({reference!r})")


def _save(state: State, config: TrainingConfig, run: Run, progress: Progress) -> None:
    if run.world.first:
        folder = run.folder / "checkpoints"
        needed = lambda: 3 * _size(state.module)  # noqa: E731  with the optimizer's two moments
        with disk_may_fill("the checkpoint", folder, needed, run.log):
            checkpoint.save(run.folder, state, progress, experiment=run.experiment, keep=config.keep)


def _size(module: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in module.state_dict().values())


def peak_memory(device: torch.device) -> int:
    """Most bytes held at once so far: by torch on a GPU, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
