"""The batches of an epoch, in the order of (seed, epoch), divided among the processes of a run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from captioning.loaders.batches import TrainingBatches, bucketed_batches, loader, token_batches
from captioning.loaders.captions import EncodedCaptions
from captioning.loaders.images import Images
from captioning.tensors import Batch
from captioning.training.checkpoint import Progress
from captioning.training.config import TrainingConfig
from captioning.training.run import Run
from captioning.training.validation import Validator
from captioning.utils.packed_strings import PackedStrings


class Data(NamedTuple):
    """The training split, and the validator with the validation split."""

    ids: PackedStrings  # of the training images
    captions: EncodedCaptions
    images: Images
    validator: Validator


def count_updates(data: Data, config: TrainingConfig, *, seed: int, epoch: int) -> int:
    """Updates in an epoch; `epoch` counts over all phases."""
    return -(-len(_image_numbers(data, config, seed, epoch)) // config.accumulate)


def epoch_updates(
    data: Data,
    config: TrainingConfig,
    run: Run,
    progress: Progress,
    *,
    pad: int,
    caption_weights: np.ndarray | None,
) -> Iterator[list[Batch]]:
    """This process's share of the epoch's batches, `config.accumulate` for each update, from the next update on."""
    world, epoch = run.world, progress.epochs_before + progress.epoch
    batches = _image_numbers(data, config, run.seed, epoch)[progress.epoch_step * config.accumulate :]
    # a process without an image in a small batch computes one image whose captions are all padding
    shares = [shard if len(shard := world.shard(numbers)) else numbers[:1] for numbers in batches]
    dataset = TrainingBatches(
        data.ids,
        data.captions,
        data.images,
        captions_per_image=config.captions_per_image,
        pad=pad,
        seed=run.seed,
        epoch=epoch,
        weights=caption_weights,
    )
    loaded = loader(dataset, shares, workers=config.workers, pin_memory=run.device.type == "cuda")
    mine = (
        _without_captions(batch, pad) if world.rank >= len(numbers) else batch
        for batch, numbers in zip(loaded, batches, strict=True)
    )
    while update := list(itertools.islice(mine, config.accumulate)):
        yield update


def _image_numbers(data: Data, config: TrainingConfig, seed: int, epoch: int) -> Sequence[np.ndarray]:
    if config.max_tokens:
        return token_batches(
            data.captions,
            max_tokens=config.max_tokens,
            captions_per_image=config.captions_per_image,
            seed=seed,
            epoch=epoch,
        )
    return bucketed_batches(data.captions, size=config.batch_size, seed=seed, epoch=epoch)


def _without_captions(batch: Batch, pad: int) -> Batch:
    return batch._replace(image_ids=[], ids=torch.full_like(batch.ids, pad), tokens=0)
