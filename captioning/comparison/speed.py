"""Training and decoding speed of several decoders, and their memory, measured in turns in one process."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from captioning.benchmarks.harness import interleave, peak_memory
from captioning.captioner.captioner import Captioner
from captioning.captioner.predict import generate_captions
from captioning.loaders.captions import EncodedCaptions, pad_captions
from captioning.loaders.images import Images
from captioning.records import ImageId, ImageRecord
from captioning.tensors import Features
from captioning.training.losses import teacher_forced_loss
from captioning.training.validation import to_device
from captioning.utils.progress import progress

TRAINING_IMAGES = 16
"""Images of a training step. Decoding uses all images given."""


class TrainingStep(NamedTuple):
    run: Callable[[], Any]
    captions: int
    tokens: int


def measure(
    captioners: Mapping[str, Captioner],
    features: Mapping[str, Features],
    records: Sequence[ImageRecord],
    *,
    captions: int,
    repeats: int = 5,
) -> dict[str, dict[str, float]]:
    """Speed and memory of each captioner's decoder on the same images.

    A training step is forward, backward, clipping and AdamW over `captions` captions of each of the first images;
    decoding is each model's own search. The systems take turns, so that other work on the machine affects all of
    them alike; the numbers are medians. The step's learning rate is 0, so the weights stay as they are.

    Args:
        features: of the images of `records`, (I, N, D), from each captioner's own encoder.
    """
    steps = {
        name: _training_step(captioner, features[name], records[:TRAINING_IMAGES], captions)
        for name, captioner in captioners.items()
    }
    training = interleave({name: step.run for name, step in steps.items()}, repeats=repeats)
    costs: dict[str, dict[str, float]] = {}
    for name, step in steps.items():
        seconds = statistics.median(training[name])
        costs[name] = {
            "repeats": repeats,
            "train_captions_per_s": step.captions / seconds,
            "train_tokens_per_s": step.tokens / seconds,
            "train_memory_mb": peak_memory(step.run) / 2**20,
        }
    ids = [record.image_id for record in records]
    searches = {
        name: partial(_decode, captioner, features[name], ids) for name, captioner in captioners.items()
    }
    words = {name: search() for name, search in searches.items()}
    decoding = interleave(searches, repeats=max(2, repeats // 2))
    for name, search in searches.items():
        seconds = statistics.median(decoding[name])
        costs[name] |= {
            "decode_captions_per_s": len(records) / seconds,
            "decode_ms_per_word": 1000 * seconds / max(1, words[name]),
            "decode_memory_mb": peak_memory(search) / 2**20,
        }
    return costs


def _training_step(
    captioner: Captioner, features: Features, records: Sequence[ImageRecord], captions: int
) -> TrainingStep:
    vocabulary, decoder = captioner.vocabulary, captioner.decoder
    longest = captioner.max_positions
    max_length = 10**6 if longest is None else longest - 1
    encoded = EncodedCaptions.from_records(records, vocabulary, max_length=max_length)
    generator = np.random.default_rng(0)
    chosen = [encoded.sample_ids(number, captions, generator) for number in range(len(records))]
    ids, batch_sizes, tokens = pad_captions(chosen, captions_per_image=captions, pad=vocabulary.pad)
    ids = ids.to(features.regions.device)
    mask = None if features.mask is None else features.mask[: len(records)]
    batch_features = Features(features.regions[: len(records)], mask)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.0, weight_decay=0.0, fused=True)

    def run() -> None:
        decoder.train()
        optimizer.zero_grad(set_to_none=True)
        memory = decoder.encode_memory(batch_features)
        loss = teacher_forced_loss(decoder, memory, ids, batch_sizes, pad=vocabulary.pad)
        (loss / tokens).backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 5.0)
        optimizer.step()

    return TrainingStep(run, sum(map(len, chosen)), tokens)


def _decode(captioner: Captioner, features: Features, ids: Sequence[ImageId]) -> int:
    """Caption all images; returns the number of words including `<end>`."""
    captioner.eval()
    predictions = generate_captions(captioner, features, ids)
    return sum(len(prediction.ids) for prediction in predictions)


@torch.no_grad()  # not inference_mode: a training step uses these features
def encode(captioner: Captioner, images: Images, count: int, *, batch_size: int = 32) -> Features:
    """Features of images 0 .. count - 1."""
    device = next(captioner.parameters()).device
    chunks = []
    for start in progress(range(0, count, batch_size), desc="features", unit="batch", delay=2):
        numbers = range(start, min(start + batch_size, count))
        chunks.append(captioner.features(to_device(images(numbers, 0), device)))
    masks = [chunk.mask for chunk in chunks if chunk.mask is not None]
    return Features(torch.cat([chunk.regions for chunk in chunks]), torch.cat(masks) if masks else None)
