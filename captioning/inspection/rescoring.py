"""Captions read back by the captioner that found them, or might have: each word's numbers, and whose the error is.

Knows captions as text and as ids; searches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from captioning.captioner.captioner import Captioner
from captioning.captioner.ensemble import EnsembleCaptioner
from captioning.generation import SearchConfig, constraint_ids
from captioning.generation.base import RankedSearchConfig
from captioning.generation.processors import LogitsProcessors, build_logits_processors, process_logits
from captioning.generation.scores import IMPOSSIBLE, length_score, next_logprobs
from captioning.models.decoders import Decoder
from captioning.records import ImageId, Prediction
from captioning.text.tokenizer import tokenize
from captioning.text.vocabulary import Vocabulary

Error = Literal["search", "model", "none", "unknown"]
Ids = tuple[int, ...]


class Reading(NamedTuple):
    """What a decoder thinks of given words; 0 behind a caption's last."""

    word_logprobs: Tensor  # (B, K, T) nats
    entropy: Tensor  # (B, K, T) nats: of the distribution from which the word came
    allowed: Tensor  # (B, K) bool: no word of the caption is against the search's rules


@dataclass(frozen=True, slots=True)
class WordDetail:
    """One word of a caption, `<end>` included: log-probability (nats), probability, and the entropy (nats) of
    the distribution that it was chosen from."""

    word: str
    logprob: float
    probability: float
    entropy: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who is to blame where a caption is not a reference.

    search: the model holds `reference` likelier (`score`, by the search's length rule) than what was found.
    model: it holds what was found likelier than every reference.
    none: what was found is a reference.
    unknown: the search could have found no reference: words that the model does not know or the rules forbid,
        or too many words. `reference` is "" then, and `score` 0.
    """

    image_id: ImageId
    error: Error
    reference: str
    score: float
    found: float


@torch.inference_mode()
def read(decoder: Decoder, memory: Any, words: Tensor, limits: LogitsProcessors) -> Reading:
    """`words` (B, K, T) int64 through `decoder.forward`; behind the first `<end>`, and where negative, is nothing.

    Log-probabilities are those that searches claim: of the full distribution, before any rule.
    """
    there = words >= 0
    there[..., 1:] &= (words == limits.end).cumsum(-1)[..., :-1] == 0
    words = words.clamp(min=0)
    started = torch.cat([torch.full_like(words[..., :1], limits.start), words[..., :-1]], -1)
    hidden = decoder(started, memory).hidden  # (B, K, T, H)
    nothing = limits.suppress_ids[:0]
    logprob, entropy, allowed = [], [], []
    for t, chosen in enumerate(words.unbind(-1)):  # (B, K, V) at a time
        logits = decoder.logits(hidden[:, :, t])
        each = next_logprobs(logits.clone(), nothing)  # which writes into what it is given
        logprob.append(each.gather(-1, chosen[..., None])[..., 0])
        entropy.append(torch.special.entr(each.exp()).sum(-1))
        ruled = process_logits(logits, words[..., :t], limits).gather(-1, chosen[..., None])[..., 0]
        allowed.append((ruled != IMPOSSIBLE) | (t < len(limits.prefix)))
    begun = words.new_tensor(limits.prefix)
    begins = (words[..., : len(begun)] == begun).all(-1) & (words.shape[-1] >= len(begun))
    return Reading(
        word_logprobs=torch.stack(logprob, -1).masked_fill(~there, 0.0),
        entropy=torch.stack(entropy, -1).masked_fill(~there, 0.0),
        allowed=begins & (torch.stack(allowed, -1) | ~there).all(-1),
    )


def word_details(
    captioner: Captioner | EnsembleCaptioner,
    memory: Any,
    predictions: Sequence[Prediction],
    config: SearchConfig,
) -> list[list[list[WordDetail]]]:
    """For each image, for its caption and each alternative, the words' numbers.

    Args:
        memory: `captioner.remember(images)` of the predictions' images.
        predictions: B, with as many alternatives as they have.
    """
    vocabulary = captioner.vocabulary
    listed = [
        [_said(each, vocabulary) for each in (prediction, *prediction.alternatives)]
        for prediction in predictions
    ]
    reading = _read(captioner, memory, listed, config)
    logprob, entropy = reading.word_logprobs.tolist(), reading.entropy.tolist()
    probability = reading.word_logprobs.exp().tolist()
    return [
        [
            [
                WordDetail(vocabulary.words[word], logprob[b][k][t], probability[b][k][t], entropy[b][k][t])
                for t, word in enumerate(words)
            ]
            for k, words in enumerate(captions)
        ]
        for b, captions in enumerate(listed)
    ]


def judge(
    captioner: Captioner | EnsembleCaptioner,
    memory: Any,
    predictions: Sequence[Prediction],
    references: Sequence[Sequence[str]],
    config: SearchConfig,
) -> list[Verdict]:
    """Search error or model error, for each image: see `Verdict`.

    Args:
        memory: `captioner.remember(images)` of the predictions' images.
        predictions: B, found by `config`.
        references: B lists of captions, raw text; an image's best-scored one counts.
    """
    vocabulary = captioner.vocabulary
    listed = [
        [
            (*(vocabulary.ids.get(token, vocabulary.unk) for token in tokenize(text)), vocabulary.end)
            for text in texts
        ]
        for texts in references
    ]
    if not any(listed):
        return [_verdict(prediction, "unknown") for prediction in predictions]
    # one word more than a caption may have tells a reference that is too long; no more is ever read
    cut = [[words[: config.max_length] for words in captions] for captions in listed]
    reading = _read(captioner, memory, cut, config)
    rule, alpha = (
        (config.length_rule, config.alpha) if isinstance(config, RankedSearchConfig) else ("sum", 0.0)
    )
    logprob, allowed = reading.word_logprobs.sum(-1).tolist(), reading.allowed.tolist()
    verdicts = []
    for b, prediction in enumerate(predictions):
        said = _said(prediction, vocabulary)
        scores = {
            k: float(length_score(torch.tensor(logprob[b][k]), len(words), rule, alpha))
            for k, words in enumerate(listed[b])
            if len(words) <= config.max_length and allowed[b][k]
        }
        if not scores:
            verdicts.append(_verdict(prediction, "unknown"))
            continue
        best = max(scores, key=lambda k: scores[k])
        error: Error = "model"
        if said in listed[b]:
            error = "none"
        elif (
            not prediction.finished or scores[best] > prediction.score
        ):  # what ended ranks before what did not
            error = "search"
        verdicts.append(_verdict(prediction, error, references[b][best], scores[best]))
    return verdicts


def shares(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """`images`, and of them the shares whose error is the search's, the model's, none, unknown."""
    count = len(verdicts)
    return {
        "images": count,
        **{
            f"{error}_error" if error in ("search", "model") else error: sum(
                each.error == error for each in verdicts
            )
            / count
            for error in get_args(Error)
        },
    }


def as_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    return [asdict(each) for each in verdicts]


def limits_of(
    captioner: Captioner | EnsembleCaptioner, config: SearchConfig, device: torch.device
) -> LogitsProcessors:
    """The rules of `config` in the captioner's ids."""
    vocabulary = captioner.vocabulary
    return build_logits_processors(
        config,
        len(vocabulary),
        device,
        special=vocabulary.special_tokens,
        constraints=constraint_ids(config, vocabulary),
    )


def _read(
    captioner: Captioner | EnsembleCaptioner,
    memory: Any,
    listed: Sequence[Sequence[Ids]],
    config: SearchConfig,
) -> Reading:
    """B lists of captions, as many as there are in each."""
    device = next(captioner.parameters()).device
    width = max(map(len, listed))
    length = max((len(words) for captions in listed for words in captions), default=0)
    words = torch.full((len(listed), max(width, 1), max(length, 1)), -1)
    for b, captions in enumerate(listed):
        for k, each in enumerate(captions):
            words[b, k, : len(each)] = torch.tensor(each, dtype=torch.int64)
    return read(captioner.decoder, memory, words.to(device), limits_of(captioner, config, device))


def _said(prediction: Prediction, vocabulary: Vocabulary) -> Ids:
    """The ids that the search produced; words are parted by one space, and may hold others (no-break)."""
    words = prediction.caption.split(" ") if prediction.caption else []
    return (*(vocabulary.ids[word] for word in words), *([vocabulary.end] if prediction.finished else []))


def _verdict(prediction: Prediction, error: Error, reference: str = "", score: float = 0.0) -> Verdict:
    return Verdict(prediction.image_id, error, reference, score, found=prediction.score)
