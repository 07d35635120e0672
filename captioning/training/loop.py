"""The training loop: load, forward, loss, backward, clip, update; then validate, keep the best, save. One page."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from captioning.batches import EncodedCaptions, Images, TrainingBatches, loader, order
from captioning.captioner import Captioner
from captioning.errors import UserError
from captioning.losses import caption_logp, cross_entropy, doubly_stochastic, hard_attention
from captioning.records import ImageRecord
from captioning.tensors import Batch
from captioning.tracking import Tracker
from captioning.training import checkpoint
from captioning.training.average import Average
from captioning.training.checkpoint import Progress
from captioning.training.config import TrainingConfig
from captioning.training.validation import Validation, Validator, to_device


class Data(NamedTuple):
    """What the loop trains on and validates with."""

    records: Sequence[ImageRecord]  # of the training split
    captions: EncodedCaptions
    images: Images
    validator: Validator


def train(
    captioner: Captioner,
    data: Data,
    config: TrainingConfig,
    *,
    folder: Path,
    tracker: Tracker,
    seed: int,
    experiment: str,
    card: Callable[[Progress, dict[str, float]], str],
    resume: bool,
    say: Callable[[str], None],
) -> Progress:
    """Train until `epochs` or `patience` is used up; the best model by `metric` is in `folder/model`.

    Args:
        captioner: on its device.
        folder: the run; `checkpoints/last` and `model` are written there.
        experiment: fingerprint of the settings that a checkpoint must have been made with.
        card: writes the model card from the progress and the validation scores.
        say: takes the lines that tell a person how it goes.
    """
    device = next(captioner.decoder.parameters()).device
    groups = [
        {"params": list(captioner.decoder.parameters())},
        *captioner.encoder.parameter_groups(config.learning_rate),
    ]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(
        groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    average = Average(captioner, config.average)
    progress, last = Progress(), folder / "checkpoints" / "last"
    if resume:
        progress = checkpoint.load(
            last, module=captioner, average=average, optimizer=optimizer, experiment=experiment
        )
        say(f"resuming after epoch {progress.epoch}, step {progress.step}")
    while progress.epoch < config.epochs and not progress.done:
        began, waited, tokens, captions, sums = time.perf_counter(), 0.0, 0, 0, {"loss": 0.0, "tokens": 0.0}
        batches = order(data.captions, size=config.images, seed=seed, epoch=progress.epoch)
        dataset = TrainingBatches(
            [record.image_id for record in data.records],
            data.captions,
            data.images,
            width=config.captions,
            pad=captioner.vocabulary.pad,
            seed=seed,
            epoch=progress.epoch,
        )
        captioner.train()
        bar = tqdm(
            total=len(batches), desc=f"epoch {progress.epoch + 1}/{config.epochs}", leave=False, disable=None
        )
        stream = iter(loader(dataset, batches, workers=config.workers, pin_memory=device.type == "cuda"))
        for _ in range(len(batches)):
            asked = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - asked
            factor = config.schedule.factor(progress.step, steps_per_epoch=len(batches), epochs=config.epochs)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad(set_to_none=True)
            loss, entropy = losses(captioner, batch, config, device)
            loss.backward()
            norm = get_total_norm([each.grad for each in trained if each.grad is not None])
            if not torch.isfinite(norm):
                raise UserError(
                    f"step {progress.step}: the gradient is {float(norm)} (images {batch.image_ids[:5]}); "
                    "lower training.learning_rate"
                )
            if config.clip and norm > config.clip:
                clip_grads_with_norm_(trained, config.clip, norm)
            optimizer.step()
            average.update(progress.step)
            progress.step += 1
            tokens, captions = (
                tokens + batch.tokens,
                captions + int((batch.words[..., 1] != captioner.vocabulary.pad).sum()),
            )
            sums["loss"], sums["tokens"] = sums["loss"] + float(entropy), sums["tokens"] + batch.tokens
            bar.update()
            if progress.step % config.log_every == 0:
                values = {
                    "train/loss": sums["loss"] / sums["tokens"],
                    "train/gradient": float(norm),
                    "train/rate": rates[0] * factor,
                }
                tracker.log(values, step=progress.step)
                bar.set_postfix_str(f"loss {values['train/loss']:.3f}")
                sums = {"loss": 0.0, "tokens": 0.0}
        bar.close()
        progress.epoch += 1
        elapsed = time.perf_counter() - began
        speed = {
            "captions_per_s": captions / elapsed,
            "tokens_per_s": tokens / elapsed,
            "waiting_share": waited / elapsed,
            "seconds": elapsed,  # of this epoch, validation left out
            "memory_mb": peak_memory(device) / 2**20,
        }
        tracker.log({f"speed/{name}": value for name, value in speed.items()}, step=progress.step)
        if progress.epoch % config.validate_every == 0 or progress.epoch == config.epochs:
            captioner.eval()
            with average.in_place():
                shown = data.validator(captioner, device)
                score = shown.scores[config.metric]
                better = progress.best is None or score > progress.best
                if better:
                    progress.best, progress.best_epoch, progress.stale = score, progress.epoch, 0
                    captioner.save(folder / "model", card=card(progress, shown.scores))
                else:
                    progress.stale += 1
            progress.done = progress.stale >= config.patience
            _report(shown, data, tracker, progress, config, say, speed, better)
        progress.seconds += time.perf_counter() - began
        progress.done = progress.done or progress.epoch >= config.epochs
        checkpoint.save(
            last,
            module=captioner,
            average=average,
            optimizer=optimizer,
            progress=progress,
            experiment=experiment,
        )
    return progress


def peak_memory(device: torch.device) -> int:
    """Most bytes held at once so far: by torch on a GPU, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def losses(
    captioner: Captioner, batch: Batch, config: TrainingConfig, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What is minimised, a mean over the batch's tokens, and the summed cross-entropy without the penalty."""
    decoder, words = captioner.decoder, batch.words.to(device, non_blocking=True)
    memory = decoder.remember(captioner.features(to_device(batch.images, device)))
    steps = decoder(words[..., :-1], memory, batch.running)
    targets = words[..., 1:].flatten()
    counts = (targets != captioner.vocabulary.pad).nonzero().squeeze(1)  # the positions that count
    hidden = steps.hidden.flatten(0, 2).index_select(0, counts)
    logits = decoder.logits(hidden)
    entropy = cross_entropy(logits, targets[counts], smoothing=config.label_smoothing)
    loss = entropy / batch.tokens
    if steps.looked is not None and steps.attention is not None:
        valid = words[..., 1:] != captioner.vocabulary.pad
        logp = caption_logp(logits, targets[counts], valid)
        loss = loss + hard_attention(steps.attention, steps.looked, logp, valid) / batch.tokens
    if config.doubly_stochastic:
        if steps.attention is None:
            raise UserError(
                "training.doubly_stochastic needs a decoder that shows its attention while training"
            )
        valid = words[..., 1:] != captioner.vocabulary.pad
        loss = loss + config.doubly_stochastic * doubly_stochastic(steps.attention, valid)
    return loss, entropy.detach()


def _report(
    shown: Validation,
    data: Data,
    tracker: Tracker,
    progress: Progress,
    config: TrainingConfig,
    say: Callable[[str], None],
    speed: dict[str, float],
    better: bool,
) -> None:
    scores = shown.scores
    progress.history.append({"epoch": progress.epoch, "step": progress.step, **scores})
    tracker.log({f"val/{name}": value for name, value in scores.items()}, step=progress.step)
    tracker.summary(f"val/{config.metric}", progress.best or 0.0, best="max")
    rows: list[list[Path | str]] = [
        [Path(record.path), record.captions[0], prediction.caption]
        for record, prediction in zip(
            data.validator.records, shown.predictions[: config.samples], strict=False
        )
    ]
    tracker.table("samples", ["image", "reference", "prediction"], rows, step=progress.step)
    say(
        f"epoch {progress.epoch:3d}  val loss {scores['loss']:.3f}  BLEU-4 {100 * scores['Bleu_4']:.1f}  "
        f"ROUGE-L {100 * scores['ROUGE_L']:.1f}  CIDEr-D {100 * scores['CIDEr-D']:.1f}  "
        f"{speed['captions_per_s']:.0f} captions/s, {100 * speed['waiting_share']:.1f} % waiting for data"
        f"{'  *best' if better else ''}"
    )
    for _, reference, caption in rows[:3]:
        say(f"           {caption!r}  ({reference!r})")
