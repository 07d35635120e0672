"""Long captions: recall of the first sentence's name in the last, and cost per word by caption length."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioning.benchmarks.harness import interleave, peak_memory
from captioning.captioner.captioner import Captioner
from captioning.datasets.shapes_grammar import NAMES, dependency
from captioning.generation import GreedyConfig, search
from captioning.loaders.captions import EncodedCaptions, pad_captions
from captioning.loaders.images import Images
from captioning.models.decoders import Decoder, DecoderConfig, build
from captioning.records import ImageRecord
from captioning.tensors import Features
from captioning.text.tokenizer import tokenize
from captioning.text.vocabulary import SPECIALS, Vocabulary
from captioning.training.losses import teacher_forced_loss
from captioning.training.validation import to_device

IMAGES, CAPTIONS = 16, 5
"""Batch size of the cost measurements, and captions per image."""


def name_agreement(captions: Sequence[str]) -> float:
    """The share of captions whose last word is the name that is their first word."""
    names = [dependency(tokenize(caption)) for caption in captions]
    return statistics.fmean(name.last is not None and name.first == name.last for name in names)


@torch.inference_mode()
def recall(
    captioner: Captioner,
    images: Images,
    records: Sequence[ImageRecord],
    *,
    max_length: int,
    batch_size: int = 8,
) -> dict[str, float]:
    """How well the last word of the references, a name that was also their first word, is predicted.

    Teacher forced: mistakes in between count neither for nor against the decoder's memory.

    Args:
        captioner: in eval mode.
        images: of `records`, by number.
        max_length: captions are cut there, as in training; cut captions have no last name and are left out.

    Returns:
        accuracy: share of captions whose name gets the highest score of all words.
        among_names: the same with only the names as candidates; guessing gives `length_claims.CHANCE`.
        probability: mean probability of the right name.
        captions: how many were evaluated; the other entries are missing if there were none.
    """
    vocabulary = captioner.vocabulary
    device = next(captioner.parameters()).device
    known = [vocabulary.ids[name.lower()] for name in NAMES if name.lower() in vocabulary.ids]
    name_ids = torch.tensor(known, device=device)
    encoded = EncodedCaptions.from_records(records, vocabulary, max_length=max_length)
    logprobs, targets = [], []
    for start in range(0, len(records), batch_size):
        numbers = range(start, min(start + batch_size, len(records)))
        chosen = [encoded.sample_ids(number, CAPTIONS, np.random.default_rng(0)) for number in numbers]
        ids, batch_sizes, _ = pad_captions(chosen, captions_per_image=CAPTIONS, pad=vocabulary.pad)
        features = captioner.features(to_device(images(numbers, 0), device))
        logprob, target = _last_names(captioner, features, ids.to(device), batch_sizes, name_ids)
        logprobs.append(logprob)
        targets.append(target)
    logprob, target = torch.cat(logprobs), torch.cat(targets)  # (C, V), (C,)
    if not len(target):
        return {"captions": 0}
    best_name = name_ids[logprob[:, name_ids].argmax(-1)]
    return {
        "accuracy": (logprob.argmax(-1) == target).double().mean().item(),
        "among_names": (best_name == target).double().mean().item(),
        "probability": logprob.gather(1, target[:, None]).exp().double().mean().item(),
        "captions": len(target),
    }


def _last_names(
    captioner: Captioner, features: Features, ids: Tensor, batch_sizes: tuple[int, ...], name_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (C, V) before the last word and that word (C,), for the C captions that end with a name.

    ids: (B, K, T + 1).
    """
    vocabulary, decoder = captioner.vocabulary, captioner.decoder
    hidden = decoder(ids[..., :-1], decoder.encode_memory(features), batch_sizes).hidden  # (B, K, T, H)
    ended = ids == vocabulary.end
    b, k = ended.any(-1).nonzero(as_tuple=True)
    end = ended[b, k].int().argmax(-1)  # position of <end>
    target = ids[b, k, end - 1]
    named = torch.isin(target, name_ids) & (end >= 2)
    b, k, end, target = b[named], k[named], end[named], target[named]
    return torch.log_softmax(decoder.logits(hidden[b, k, end - 2]).float(), -1), target


def cost_by_length(
    decoders: Mapping[str, DecoderConfig],
    lengths: Sequence[int],
    *,
    channels: int,
    regions: int,
    vocabulary_size: int,
    repeats: int = 3,
) -> dict[str, list[dict[str, float]]]:
    """Cost of a token in training and of a word in decoding, for captions of each length.

    A training step is forward and backward over 16 images with 5 captions; decoding is greedy for 16 images; every
    caption has exactly the given length. The weights are untrained, on which cost does not depend. The decoders take
    turns, and the minimum of `repeats` is reported as the least disturbed.

    Returns:
        For each decoder one row per length: words, train_us_per_token, train_kb_per_token, and decode_ms_per_word
        (milliseconds until all 16 captions have one more word).
    """
    generator = torch.Generator().manual_seed(0)
    features = Features(torch.randn(IMAGES, regions, channels, generator=generator))
    models = {
        name: build(config, channels=channels, vocabulary_size=vocabulary_size)
        for name, config in decoders.items()
    }
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for length in lengths:
        shape = (IMAGES, CAPTIONS, length + 1)
        ids = torch.randint(len(SPECIALS), vocabulary_size, shape, generator=generator)
        steps = {name: _training_step(model, features, ids) for name, model in models.items()}
        searches = {name: _greedy_search(model, features, length) for name, model in models.items()}
        training = interleave(steps, repeats=repeats)
        decoding = interleave(searches, repeats=repeats)
        tokens = IMAGES * CAPTIONS * length
        for name, step in steps.items():
            rows[name].append(
                {
                    "words": length,
                    "train_us_per_token": 1e6 * min(training[name]) / tokens,
                    "train_kb_per_token": peak_memory(step) / tokens / 1024,
                    "decode_ms_per_word": 1e3 * min(decoding[name]) / length,
                }
            )
    return rows


def _training_step(model: Decoder, features: Features, ids: Tensor) -> Callable[[], Any]:
    def run() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        teacher_forced_loss(model, model.encode_memory(features), ids, pad=Vocabulary.pad).backward()

    return run


def _greedy_search(model: Decoder, features: Features, length: int) -> Callable[[], Any]:
    config = GreedyConfig(min_length=length, max_length=length)
    special = Vocabulary(words=SPECIALS).special_tokens

    def run() -> None:
        model.eval()
        with torch.inference_mode():
            search(model, model.encode_memory(features), config, special=special)

    return run
