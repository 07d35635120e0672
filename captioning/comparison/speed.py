"""How fast decoders train and decode, and how much memory that takes: measured in turns, in one process."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from captioning.benchmarks.training_and_decoding import peak_memory, rounds
from captioning.captioner.captioner import Captioner
from captioning.captioner.predict import generate_captions
from captioning.loaders.batches import EncodedCaptions, pack
from captioning.records import ImageRecord
from captioning.tensors import Features
from captioning.training.losses import cross_entropy
from captioning.training.validation import to_device

IMAGES = 16
"""Of a training step. Decoding takes all that are given."""


def measure(
    captioners: Mapping[str, Captioner],
    features: Mapping[str, Features],
    records: Sequence[ImageRecord],
    *,
    captions: int,
    repeats: int = 5,
) -> dict[str, dict[str, float]]:
    """Speed and memory of each captioner's decoder on the same images.

    A training step is forward, backward, clipping and AdamW over `captions` captions each of the first images;
    decoding is each model's own search. The systems take turns, so that what else the machine does strikes all
    of them alike; numbers are medians. Weights stay as they are: the step's learning rate is 0.

    Args:
        features: of the images of `records`, (I, N, D), from each captioner's own encoder.
    """
    steps = {
        name: _step(each, features[name], records[:IMAGES], captions) for name, each in captioners.items()
    }
    trained = rounds({name: step for name, (step, _, _) in steps.items()}, repeats=repeats)
    found: dict[str, dict[str, float]] = {}
    for name, (step, count, tokens) in steps.items():
        seconds = statistics.median(trained[name])
        found[name] = {
            "repeats": repeats,
            "train_captions_per_s": count / seconds,
            "train_tokens_per_s": tokens / seconds,
            "train_memory_mb": peak_memory(step) / 2**20,
        }
    words: dict[str, int] = {}
    decoders = {
        name: _decoding(name, each, features[name], records, words) for name, each in captioners.items()
    }
    decoded = rounds(decoders, repeats=max(2, repeats // 2))
    for name, decode in decoders.items():
        seconds = statistics.median(decoded[name])
        found[name] |= {
            "decode_captions_per_s": len(records) / seconds,
            "decode_ms_per_word": 1000 * seconds / max(1, words[name]),
            "decode_memory_mb": peak_memory(decode) / 2**20,
        }
    return found


def _step(
    captioner: Captioner, features: Features, records: Sequence[ImageRecord], captions: int
) -> tuple[Callable[[], Any], int, int]:
    """A training step, its captions and its tokens."""
    vocabulary, decoder = captioner.vocabulary, captioner.decoder
    encoded = EncodedCaptions.of(records, vocabulary, max_length=_longest(captioner))
    generator = np.random.default_rng(0)
    chosen = [encoded.of_image(number, captions, generator) for number in range(len(records))]
    words, batch_sizes, tokens = pack(chosen, width=captions, pad=vocabulary.pad)
    words = words.to(features.regions.device)
    valid = None if features.valid is None else features.valid[: len(records)]
    part = Features(features.regions[: len(records)], valid)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    targets = words[..., 1:].flatten()
    counts = (targets != vocabulary.pad).nonzero().squeeze(1)

    def step() -> None:
        decoder.train()
        optimizer.zero_grad(set_to_none=True)
        hidden = decoder(words[..., :-1], decoder.encode_memory(part), batch_sizes).hidden.flatten(0, 2)
        loss = cross_entropy(decoder.logits(hidden.index_select(0, counts)), targets[counts], smoothing=0.0)
        (loss / tokens).backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 5.0)
        optimizer.step()

    return step, sum(map(len, chosen)), tokens


def _longest(captioner: Captioner) -> int:
    longest = captioner.config.decoder.max_positions
    return 10**6 if longest is None else longest - 1


def _decoding(
    name: str,
    captioner: Captioner,
    features: Features,
    records: Sequence[ImageRecord],
    words: dict[str, int],
) -> Callable[[], Any]:
    ids = [record.image_id for record in records]

    def decode() -> None:
        captioner.eval()
        found = generate_captions(captioner, features, ids)
        words[name] = sum(len(each.caption.split()) + 1 for each in found)

    return decode


@torch.no_grad()  # not inference_mode: a training step takes these features
def features_of(captioner: Captioner, images: Any, count: int, *, size: int = 32) -> Features:
    """Features of images 0 .. count - 1 from a source of stored features or pixels."""
    device = next(captioner.parameters()).device
    parts = []
    for start in tqdm(range(0, count, size), desc="features", leave=False, disable=None, delay=2):
        numbers = range(start, min(start + size, count))
        parts.append(captioner.features(to_device(images(numbers, 0), device)))
    valid = (
        None
        if parts[0].valid is None
        else torch.cat([part.valid for part in parts if part.valid is not None])
    )
    return Features(torch.cat([part.regions for part in parts]), valid)
