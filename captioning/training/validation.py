"""Validation by the real search and the real metrics. Never teacher-forced scores; never the test split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from captioning import metrics
from captioning.captioner.captioner import Captioner
from captioning.captioner.predict import generate_captions
from captioning.generation import SearchConfig
from captioning.loaders.batches import EncodedCaptions, Images, pack
from captioning.records import ImageId, ImageRecord, Prediction
from captioning.tensors import Features
from captioning.text.tokenizer import tokenize
from captioning.training.distributed import World
from captioning.training.interruptions import Signals
from captioning.training.losses import cross_entropy

ALONE = World()
METRICS = tuple(name for name in metrics.NAMES if name != "CIDEr")  # whose curve would be taken for CIDEr-D
PRINTED = ("BLEU-4", "ROUGE-L", "CIDEr-D")


class Validation(NamedTuple):
    """What one validation has shown."""

    scores: dict[str, float]  # metric name -> corpus score; "loss": nats per token, teacher forced
    predictions: list[Prediction]


class Interrupted(Exception):
    """A signal came during validation."""


class Validator:
    """Captions and scores one split; its references are tokenized and counted once."""

    def __init__(
        self,
        records: Sequence[ImageRecord],
        images: Images,
        captions: EncodedCaptions,
        *,
        search: SearchConfig,
        size: int,
        more_metrics: Sequence[str] = (),
    ):
        """`more_metrics`: computed beside `METRICS`.

        Raises:
            UserError: one of them is unavailable here.
        """
        chosen = {metric.name: metric for metric in map(metrics.get_metric, (*METRICS, *more_metrics))}
        self.metrics = list(chosen.values())
        for metric in self.metrics:
            metric.check()
        self.records, self.images, self.captions, self.search, self.size = (
            records,
            images,
            captions,
            search,
            size,
        )
        self.references = metrics.ReferenceCounts(
            [[tokenize(caption) for caption in record.captions] for record in records]
        )

    def __call__(
        self,
        captioner: Captioner,
        device: torch.device,
        *,
        world: World = ALONE,
        signals: Signals | None = None,
    ) -> Validation:
        """`captioner` in eval mode. Each process takes its part of the images and gets the whole result.

        Raises:
            Interrupted: a signal came.
        """
        shown: list[Prediction] = []
        loss, tokens = 0.0, 0.0
        mine = np.asarray(world.shard(range(len(self.records))))
        for numbers, ids, features in self._features(captioner, device, mine):
            if signals and signals.caught:
                raise Interrupted
            shown += generate_captions(captioner, features, ids, config=self.search)
            more, counted = self._loss(captioner, features, numbers)
            loss, tokens = loss + more, tokens + counted
        predictions = world.gather(shown)
        loss, tokens = world.all_reduce([loss, tokens])
        candidates = [tokenize(prediction.caption) for prediction in predictions]
        found = metrics.score(self.references, candidates, metrics=self.metrics)
        scores = {name: float(value) for name, value in found.corpus.items()}
        return Validation(scores={**scores, "loss": loss / tokens}, predictions=predictions)

    @torch.inference_mode()
    def _features(
        self, captioner: Captioner, device: torch.device, mine: np.ndarray
    ) -> Iterator[tuple[np.ndarray, list[ImageId], Features]]:
        starts = range(0, len(mine), self.size)
        for start in tqdm(starts, desc="validating", leave=False, disable=None, delay=2):
            numbers = mine[start : start + self.size]
            ids = [self.records[number].image_id for number in numbers]
            yield numbers, ids, captioner.features(to_device(self.images(numbers, 0), device))

    @torch.inference_mode()
    def _loss(self, captioner: Captioner, features: Features, numbers: np.ndarray) -> tuple[float, int]:
        vocabulary = captioner.vocabulary
        width = int((self.captions.first[numbers + 1] - self.captions.first[numbers]).max())
        chosen = [self.captions.of_image(int(number), width, np.random.default_rng(0)) for number in numbers]
        words, batch_sizes, tokens = pack(chosen, width=width, pad=vocabulary.pad)
        words = words.to(features.regions.device)
        steps = captioner.decoder(words[..., :-1], captioner.decoder.encode_memory(features), batch_sizes)
        targets = words[..., 1:]
        counts = targets != vocabulary.pad
        logits = captioner.decoder.logits(steps.hidden[counts])
        return float(cross_entropy(logits, targets[counts], smoothing=0.0)), tokens


def scores_text(scores: Mapping[str, float], metric: metrics.Metric) -> str:
    """The scores that a validation prints, `metric` among them."""
    names = [*PRINTED, *([] if metric.name in PRINTED else [metric.name])]
    return "  ".join(f"{name} {metrics.printed_scale(name, metric) * scores[name]:.1f}" for name in names)


def to_device(images: Features | torch.Tensor, device: torch.device) -> Features | torch.Tensor:
    """Features as float32, or pixels, on `device`."""
    if isinstance(images, Features):
        valid = images.mask if images.mask is None else images.mask.to(device, non_blocking=True)
        return Features(regions=images.regions.to(device, non_blocking=True).float(), mask=valid)
    return images.to(device, non_blocking=True)
