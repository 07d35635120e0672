"""Validation: captions by the run's own search, scored with the real metrics, and the teacher-forced loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from captioning import metrics
from captioning.captioner.captioner import Captioner
from captioning.captioner.predict import generate_captions
from captioning.generation import SearchConfig
from captioning.loaders.captions import EncodedCaptions, pad_captions
from captioning.loaders.images import Images
from captioning.records import ImageRecord, Prediction
from captioning.tensors import Features
from captioning.text.tokenizers import TOKENIZERS, TokenizerName
from captioning.training.checkpoint import Progress
from captioning.training.config import TrainingConfig
from captioning.training.distributed import World
from captioning.training.interruptions import Signals, tolerate_full_disk
from captioning.training.losses import teacher_forced_loss
from captioning.training.run import Run, module_bytes
from captioning.utils.progress import progress as progress_bar

SINGLE_PROCESS = World()
# without CIDEr, whose curve would be mistaken for CIDEr-D
METRICS = tuple(name for name in metrics.NAMES if name != "CIDEr")
PRINTED_METRICS = ("BLEU-4", "ROUGE-L", "CIDEr-D")


class Validation(NamedTuple):
    """Result of one validation."""

    scores: dict[str, float]  # metric name -> corpus score; "loss": nats per token, teacher forced
    predictions: list[Prediction]


class Interrupted(Exception):
    """A signal was caught during validation."""


class Validator:
    """Captions and scores one split; its references are tokenized and counted once.

    Args:
        captions: the split's captions as ids, for the loss.
        size: images in a batch.
        tokenizer: of the words that are scored.
        more_metrics: computed besides `METRICS`.

    Raises:
        UserError: a metric is not available on this machine.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        images: Images,
        captions: EncodedCaptions,
        *,
        search: SearchConfig,
        size: int,
        tokenizer: TokenizerName = "ptb",
        more_metrics: Sequence[str] = (),
    ):
        chosen = {metric.name: metric for metric in map(metrics.get_metric, (*METRICS, *more_metrics))}
        self.metrics = list(chosen.values())
        for metric in self.metrics:
            metric.check()
        self.records, self.images, self.captions = records, images, captions
        self.search, self.size, self.tokenize = search, size, TOKENIZERS[tokenizer]
        self.references = metrics.ReferenceCounts(
            [[self.tokenize(caption) for caption in record.captions] for record in records]
        )

    def __call__(
        self,
        captioner: Captioner,
        device: torch.device,
        *,
        world: World = SINGLE_PROCESS,
        signals: Signals | None = None,
        log: Callable[[str], None] | None = None,
    ) -> Validation:
        """Validate `captioner`, which is in eval mode. Each process takes a share and gets the whole result.

        Raises:
            Interrupted: a signal was caught.
        """
        predictions: list[Prediction] = []
        loss, tokens = 0.0, 0.0
        shard = np.asarray(world.shard(range(len(self.records))))
        starts = range(0, len(shard), self.size)
        for start in progress_bar(
            starts, desc="validating", unit="batch", delay=2, log=log, disable=not world.first
        ):
            numbers = shard[start : start + self.size]
            with torch.inference_mode():
                features = captioner.features(to_device(self.images(numbers, 0), device))
            if signals and signals.caught:
                raise Interrupted
            ids = [self.records[number].image_id for number in numbers]
            predictions += generate_captions(captioner, features, ids, config=self.search)
            batch_loss, batch_tokens = self._loss(captioner, features, numbers)
            loss, tokens = loss + batch_loss, tokens + batch_tokens
        predictions = world.gather(predictions)
        loss, tokens = world.all_reduce([loss, tokens])
        candidates = [self.tokenize(prediction.caption) for prediction in predictions]
        corpus = metrics.score(self.references, candidates, metrics=self.metrics).corpus
        scores = {name: float(value) for name, value in corpus.items()}
        return Validation(scores={**scores, "loss": loss / tokens}, predictions=predictions)

    @torch.inference_mode()
    def _loss(self, captioner: Captioner, features: Features, numbers: np.ndarray) -> tuple[float, int]:
        """Summed loss in nats, and the number of tokens, of all captions of these images."""
        width = int((self.captions.image_offsets[numbers + 1] - self.captions.image_offsets[numbers]).max())
        captions = [
            self.captions.sample_ids(int(number), width, np.random.default_rng(0)) for number in numbers
        ]
        ids, batch_sizes, tokens = pad_captions(
            captions, captions_per_image=width, pad=captioner.vocabulary.pad
        )
        decoder = captioner.decoder
        memory = decoder.encode_memory(features)
        ids = ids.to(features.regions.device)
        return float(
            teacher_forced_loss(decoder, memory, ids, batch_sizes, pad=captioner.vocabulary.pad)
        ), tokens


def record_validation(
    captioner: Captioner,
    validation: Validation,
    records: Sequence[ImageRecord],
    config: TrainingConfig,
    run: Run,
    progress: Progress,
) -> list[str]:
    """Record the scores of the epoch and keep the model if it is the best so far.

    Returns:
        Lines for the log: the scores, then some captions.
    """
    scores, metric = validation.scores, metrics.get_metric(config.metric)
    score, epoch = scores[metric.name], progress.epochs_before + progress.epoch + 1
    sign = 1 if metric.higher_is_better else -1
    best = progress.best is None or sign * score > sign * progress.best
    progress.scores.append(sign * score)
    before = progress.best, progress.best_epoch
    if best:
        progress.best, progress.best_epoch, progress.stale = score, epoch, 0
        if run.world.any(not _save_model(captioner, scores, run, progress)):
            best, (progress.best, progress.best_epoch) = False, before  # they describe the model that is kept
    else:
        progress.stale += 1
    progress.done = progress.stale >= config.patience
    progress.history.append({"epoch": epoch, "step": progress.step, **scores})

    run.record({f"val/{name}": value for name, value in scores.items()}, progress.step)
    samples = list(zip(records, validation.predictions[: config.samples], strict=False))
    if run.tracker:
        run.tracker.summary(
            f"val/{metric.name}", progress.best or 0.0, best="max" if metric.higher_is_better else "min"
        )
        rows: list[list[Path | str]] = [
            [Path(record.path), record.captions[0], sample.caption] for record, sample in samples
        ]
        run.tracker.table("samples", ["image", "reference", "prediction"], rows, step=progress.step)
    return [
        f"val loss {scores['loss']:.3f}  {scores_text(scores, metric)}{'  *best' if best else ''}",
        *(f"           {sample.caption!r}  ({record.captions[0]!r})" for record, sample in samples[:3]),
    ]


def _save_model(captioner: Captioner, scores: dict[str, float], run: Run, progress: Progress) -> bool:
    """Keep the model, in the first process; False if the disk is full."""
    if not run.world.first:
        return True
    folder = run.folder / "model"
    with tolerate_full_disk("the best model", folder, module_bytes(captioner), run.log):
        captioner.save(folder, card=run.model_card(progress, scores))
        return True
    return False


def scores_text(scores: Mapping[str, float], metric: metrics.Metric) -> str:
    """The printed metrics and `metric`, for the log."""
    names = dict.fromkeys((*PRINTED_METRICS, metric.name))
    return "  ".join(f"{name} {metrics.printed_scale(name, metric) * scores[name]:.1f}" for name in names)


def to_device(images: Features | torch.Tensor, device: torch.device) -> Features | torch.Tensor:
    """Features as float32, or pixels, on `device`."""
    if isinstance(images, Features):
        valid = images.mask if images.mask is None else images.mask.to(device, non_blocking=True)
        return Features(regions=images.regions.to(device, non_blocking=True).float(), mask=valid)
    return images.to(device, non_blocking=True)
