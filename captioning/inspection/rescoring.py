"""Captions rescored by teacher forcing: numbers of each word, and search errors versus model errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from captioning.captioner.captioner import Captioner
from captioning.captioner.ensemble import EnsembleCaptioner
from captioning.generation import SearchConfig, constraint_ids
from captioning.generation.processors import LogitsProcessors, build_logits_processors, process_logits
from captioning.generation.scores import IMPOSSIBLE, next_logprobs
from captioning.models.decoders import Decoder
from captioning.records import ImageId, Prediction

Error = Literal["search", "model", "none", "unknown"]
Ids = tuple[int, ...]


class Rescored(NamedTuple):
    """Numbers of given captions under a decoder; 0 after a caption's last token."""

    word_logprobs: Tensor  # (B, K, T) nats
    entropy: Tensor  # (B, K, T) nats: of the distribution of the token
    allowed: Tensor  # (B, K) bool: the caption satisfies the search's constraints


@dataclass(frozen=True, slots=True)
class WordDetail:
    """One token of a caption (`<end>` included): log-probability (nats), probability, and entropy (nats) of its
    distribution."""

    word: str
    logprob: float
    probability: float
    entropy: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a caption is not a reference.

    search: the model scores `reference` higher (`score`, by the search's length rule) than the found caption.
    model: it scores the found caption higher than every reference.
    none: the found caption is a reference.
    unknown: the search cannot produce any reference: it contains unknown words, violates the constraints or is
        too long. Then `reference` is "" and `score` 0.
    """

    image_id: ImageId
    error: Error
    reference: str
    score: float  # of the reference
    found_score: float  # of the found caption


@torch.inference_mode()
def rescore(decoder: Decoder, memory: Any, ids: Tensor, processors: LogitsProcessors) -> Rescored:
    """Log-probabilities of captions `ids` (B, K, T) int64 by `decoder.forward`.

    Negative ids and those after the first `<end>` are padding. Log-probabilities are those of a search: of the
    full distribution, before constraints.
    """
    valid = ids >= 0
    valid[..., 1:] &= (ids == processors.end).cumsum(-1)[..., :-1] == 0
    ids = ids.clamp(min=0)
    inputs = torch.cat([torch.full_like(ids[..., :1], processors.start), ids[..., :-1]], -1)
    hidden = decoder(inputs, memory).hidden  # (B, K, T, H)
    word_logprobs, entropy, allowed = [], [], []
    for t, targets in enumerate(ids.unbind(-1)):  # one position at a time: (B, K, V) is large
        logits = decoder.logits(hidden[:, :, t])
        logprobs = next_logprobs(logits.clone(), processors.suppress_ids[:0])  # overwrites its input
        word_logprobs.append(logprobs.gather(-1, targets[..., None])[..., 0])
        entropy.append(torch.special.entr(logprobs.exp()).sum(-1))
        scores = process_logits(logits, ids[..., :t], processors).gather(-1, targets[..., None])[..., 0]
        allowed.append((scores != IMPOSSIBLE) | (t < len(processors.prefix)))
    prefix = ids.new_tensor(processors.prefix)
    has_prefix = (ids[..., : len(prefix)] == prefix).all(-1) & (ids.shape[-1] >= len(prefix))
    return Rescored(
        word_logprobs=torch.stack(word_logprobs, -1).masked_fill(~valid, 0.0),
        entropy=torch.stack(entropy, -1).masked_fill(~valid, 0.0),
        allowed=has_prefix & (torch.stack(allowed, -1) | ~valid).all(-1),
    )


def word_details(
    captioner: Captioner | EnsembleCaptioner,
    memory: Any,
    predictions: Sequence[Prediction],
    config: SearchConfig,
) -> list[list[list[WordDetail]]]:
    """The numbers of each word, for each image, for its caption and each alternative.

    Args:
        memory: `captioner.encode_memory(images)` of the predictions' images.
        predictions: B, each with any number of alternatives.
    """
    vocabulary = captioner.vocabulary
    captions = [
        [caption.ids for caption in (prediction, *prediction.alternatives)] for prediction in predictions
    ]
    rescored = _rescore_lists(captioner, memory, captions, config)
    logprob, entropy = rescored.word_logprobs.tolist(), rescored.entropy.tolist()
    probability = rescored.word_logprobs.exp().tolist()
    return [
        [
            [
                WordDetail(vocabulary.words[token], logprob[b][k][t], probability[b][k][t], entropy[b][k][t])
                for t, token in enumerate(ids)
            ]
            for k, ids in enumerate(image)
        ]
        for b, image in enumerate(captions)
    ]


def judge(
    captioner: Captioner | EnsembleCaptioner,
    memory: Any,
    predictions: Sequence[Prediction],
    references: Sequence[Sequence[str]],
    config: SearchConfig,
) -> list[Verdict]:
    """Search error or model error of each image, see `Verdict`.

    Args:
        memory: `captioner.encode_memory(images)` of the predictions' images.
        predictions: B, found by `config`.
        references: B lists of captions, raw text; the one with the best score counts.
    """
    vocabulary = captioner.vocabulary
    reference_ids = [
        [
            (
                *(vocabulary.ids.get(token, vocabulary.unk) for token in vocabulary.tokenize(text)),
                vocabulary.end,
            )
            for text in texts
        ]
        for texts in references
    ]
    if not any(reference_ids):
        return [_verdict(prediction, "unknown") for prediction in predictions]
    # longer references are counted as unknown below, and the decoder may not be able to read them
    cut = [[ids[: config.max_length] for ids in image] for image in reference_ids]
    rescored = _rescore_lists(captioner, memory, cut, config)
    logprob, allowed = rescored.word_logprobs.sum(-1).tolist(), rescored.allowed.tolist()
    verdicts = []
    for b, prediction in enumerate(predictions):
        scores = {
            k: float(config.score(torch.tensor(logprob[b][k]), len(ids)))
            for k, ids in enumerate(reference_ids[b])
            if len(ids) <= config.max_length and allowed[b][k]
        }
        if not scores:
            verdicts.append(_verdict(prediction, "unknown"))
            continue
        best = max(scores, key=lambda k: scores[k])
        error: Error = "model"
        if prediction.ids in reference_ids[b]:
            error = "none"
        elif not prediction.finished or scores[best] > prediction.score:  # finished captions rank first
            error = "search"
        verdicts.append(_verdict(prediction, error, references[b][best], scores[best]))
    return verdicts


def error_shares(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The number of `images`, and the share of each kind of error."""
    keys: dict[Error, str] = {
        "search": "search_error",
        "model": "model_error",
        "none": "none",
        "unknown": "unknown",
    }
    count = len(verdicts)
    shares = {key: sum(verdict.error == error for verdict in verdicts) / count for error, key in keys.items()}
    return {"images": count, **shares}


def as_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    return [asdict(verdict) for verdict in verdicts]


def _rescore_lists(
    captioner: Captioner | EnsembleCaptioner,
    memory: Any,
    captions: Sequence[Sequence[Ids]],
    config: SearchConfig,
) -> Rescored:
    """Rescore B lists of captions of any lengths."""
    device, vocabulary = next(captioner.parameters()).device, captioner.vocabulary
    width = max(map(len, captions))
    length = max((len(ids) for image in captions for ids in image), default=0)
    padded = torch.full((len(captions), max(width, 1), max(length, 1)), -1)
    for b, image in enumerate(captions):
        for k, ids in enumerate(image):
            padded[b, k, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    processors = build_logits_processors(
        config,
        len(vocabulary),
        device,
        special=vocabulary.special_tokens,
        constraints=constraint_ids(config, vocabulary),
    )
    return rescore(captioner.decoder, memory, padded.to(device), processors)


def _verdict(prediction: Prediction, error: Error, reference: str = "", score: float = 0.0) -> Verdict:
    return Verdict(prediction.image_id, error, reference, score, found_score=prediction.score)
