"""What long captions ask of decoders: is the first sentence remembered in the last, and what a word costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from captioning.benchmarks.training_and_decoding import peak_memory, rounds
from captioning.captioner.captioner import Captioner
from captioning.datasets.shapes_grammar import NAMES
from captioning.generation import GreedyConfig, search
from captioning.loaders.batches import EncodedCaptions, Images, pack
from captioning.models.decoders import DecoderConfig, build
from captioning.records import ImageRecord
from captioning.tensors import Features
from captioning.text.vocabulary import SPECIALS, Vocabulary
from captioning.training.losses import cross_entropy
from captioning.training.validation import to_device

CHANCE = 1 / len(NAMES)
IMAGES, CAPTIONS = 16, 5
"""Of a batch whose cost is measured."""


@torch.inference_mode()
def recall(
    captioner: Captioner, images: Images, records: Sequence[ImageRecord], *, max_length: int, size: int = 8
) -> dict[str, float]:
    """How well the last word of the references, the name that was their first, is foreseen from all words before.

    Teacher forced, so that a caption gone astray in between counts neither for nor against a memory.

    Args:
        captioner: in eval mode.
        images: of `records`, by number.
        max_length: captions are cut there, as in training; those cut have no last name and are left out.

    Returns:
        accuracy: share of captions whose name gets the highest score of all words.
        among_names: the same with the eight names alone in the running; `CHANCE` is what guessing gives.
        probability: the mean probability of the right name.
        captions: how many.
    """
    vocabulary, decoder = captioner.vocabulary, captioner.decoder
    device = next(captioner.parameters()).device
    names = torch.tensor([vocabulary.ids[name.lower()] for name in NAMES if name.lower() in vocabulary.ids])
    encoded = EncodedCaptions.of(records, vocabulary, max_length=max_length)
    right = among = count = 0
    probability = 0.0
    for start in range(0, len(records), size):
        numbers = range(start, min(start + size, len(records)))
        chosen = [encoded.of_image(number, CAPTIONS, np.random.default_rng(0)) for number in numbers]
        words, batch_sizes, _ = pack(chosen, width=CAPTIONS, pad=vocabulary.pad)
        words = words.to(device)
        memory = decoder.encode_memory(captioner.features(to_device(images(numbers, 0), device)))
        hidden = decoder(words[..., :-1], memory, batch_sizes).hidden  # (B, K, T, H)
        ended = words == vocabulary.end  # (B, K, T + 1)
        b, k = ended.any(-1).nonzero(as_tuple=True)
        at = ended[b, k].int().argmax(-1)  # of <end>; the name stands before it
        name = words[b, k, at - 1]
        named = torch.isin(name, names.to(device)) & (at >= 2)
        b, k, at, name = b[named], k[named], at[named], name[named]
        if not len(name):
            continue
        logprob = torch.log_softmax(decoder.logits(hidden[b, k, at - 2]).float(), -1)
        right += int((logprob.argmax(-1) == name).sum())
        among += int((names.to(device)[logprob[:, names.to(device)].argmax(-1)] == name).sum())
        probability += float(logprob.gather(1, name[:, None]).exp().sum())
        count += len(name)
    if not count:
        return {"captions": 0}
    return {
        "accuracy": right / count,
        "among_names": among / count,
        "probability": probability / count,
        "captions": count,
    }


def cost_by_length(
    decoders: Mapping[str, DecoderConfig],
    lengths: Sequence[int],
    *,
    channels: int,
    regions: int,
    vocabulary_size: int,
    repeats: int = 3,
) -> dict[str, list[dict[str, float]]]:
    """What a token costs in training and a word in decoding when captions have so many words.

    A training step is forward and backward over 16 images with 5 captions, decoding is greedy for 16 images, every
    caption exactly that long. Weights are as before training, on which cost does not depend. The decoders take
    turns; the least of `repeats` is given, as the one least disturbed.

    Returns:
        For each decoder a row a length: words, train_us_per_token, train_kb_per_token, decode_ms_per_word (of one
        caption after another word: milliseconds until all 16 have one more).
    """
    generator = torch.Generator().manual_seed(0)
    features = Features(torch.randn(IMAGES, regions, channels, generator=generator))
    models = {
        name: build(config, channels=channels, vocabulary_size=vocabulary_size)
        for name, config in decoders.items()
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for length in lengths:
        words = torch.randint(
            len(SPECIALS), vocabulary_size, (IMAGES, CAPTIONS, length + 1), generator=generator
        )
        steps = {name: _step(model, features, words) for name, model in models.items()}
        searches = {name: _greedy(model, features, length) for name, model in models.items()}
        trained, decoded = rounds(steps, repeats=repeats), rounds(searches, repeats=repeats)
        for name, step in steps.items():
            tokens = IMAGES * CAPTIONS * length
            found[name].append(
                {
                    "words": length,
                    "train_us_per_token": 1e6 * min(trained[name]) / tokens,
                    "train_kb_per_token": peak_memory(step) / tokens / 1024,
                    "decode_ms_per_word": 1e3 * min(decoded[name]) / length,
                }
            )
    return found


def _step(model: Any, features: Features, words: torch.Tensor) -> Callable[[], Any]:
    def step() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        hidden = model(words[..., :-1], model.encode_memory(features)).hidden.flatten(0, 2)
        cross_entropy(model.logits(hidden), words[..., 1:].flatten(), smoothing=0.0).backward()

    return step


def _greedy(model: Any, features: Features, length: int) -> Callable[[], Any]:
    config = GreedyConfig(min_length=length, max_length=length)

    def decode() -> None:
        model.eval()
        with torch.inference_mode():
            search(
                model,
                model.encode_memory(features),
                config,
                special=Vocabulary(SPECIALS).special_tokens,
            )

    return decode
