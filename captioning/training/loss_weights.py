"""Weights of captions and words in the cross-entropy, computed from the training captions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from captioning.loaders.captions import EncodedCaptions
from captioning.text.vocabulary import SPECIALS, Vocabulary
from captioning.training.config import FrequencyConfig, TrainingConfig, WordWeightsConfig
from captioning.training.rewards import References
from captioning.training.word_captions import WordCaptions
from captioning.utils.progress import progress

_IMAGES_PER_CHUNK = 512


class Weights(NamedTuple):
    """A token's weight is the product of both, 1 on average over the split's tokens. None: all are 1."""

    captions: np.ndarray | None = None  # (S,) float32, in the order of the captions
    words: np.ndarray | None = None  # (V,) float32


def compute_loss_weights(
    captions: EncodedCaptions, vocabulary: Vocabulary, config: TrainingConfig
) -> Weights:
    """The weights of `config` for the training split's captions."""
    caption_weights = word_weights = None
    is_target = np.ones(len(captions.ids), bool)
    is_target[captions.caption_offsets[:-1]] = False  # `<start>` is never a target
    targets = captions.ids[is_target]
    weights = np.ones(len(targets))
    if config.word_weights:
        word_weights = compute_word_weights(targets, config.word_weights, size=len(vocabulary))
        weights = word_weights[targets]
    if config.caption_weights:
        strength = config.caption_weights.strength
        scored, size = captions, len(vocabulary)
        if vocabulary.merges is not None:
            words = WordCaptions(captions, vocabulary, max_length=0)
            scored, size = words.captions, words.vocabulary_size
        caption_weights = 1 - strength + strength * consensus(scored, vocabulary_size=size)
        weights = weights * np.repeat(caption_weights, np.diff(captions.caption_offsets) - 1)
        caption_weights = (caption_weights / weights.mean()).astype(np.float32)
    elif word_weights is not None:
        word_weights = word_weights / weights.mean()
    return Weights(caption_weights, None if word_weights is None else word_weights.astype(np.float32))


def compute_word_weights(targets: np.ndarray, config: WordWeightsConfig, *, size: int) -> np.ndarray:
    """(V,) float64, 1 on average over the ids `targets` (M,).

    `<end>` and `<unk>` have weight 1: they are frequent, and with a small weight of `<end>` captions do not end.
    """
    counts = np.bincount(targets, minlength=size).astype(float)
    at_least_one = np.maximum(counts, 1)
    if isinstance(config, FrequencyConfig):
        weights = at_least_one**-config.power
    else:
        weights = (1 - config.beta) / (1 - config.beta**at_least_one)
    counts[: len(SPECIALS)] = 0
    weights /= (counts * weights).sum() / max(1.0, counts.sum())
    weights[: len(SPECIALS)] = 1
    return weights


def consensus(captions: EncodedCaptions, *, vocabulary_size: int) -> np.ndarray:
    """(S,) CIDEr-D of each caption against the image's others, divided by the mean; 1 for an only caption.

    Document frequencies are those of the split, and `<end>` counts as a word, as in the rewards.
    """
    references = References(captions, vocabulary_size=vocabulary_size)
    counts = np.diff(captions.image_offsets)
    starts = range(0, len(counts), _IMAGES_PER_CHUNK)
    scores = np.concatenate(
        [
            _scores(captions, references, np.arange(start, min(len(counts), start + _IMAGES_PER_CHUNK)))
            for start in progress(starts, desc="caption weights", unit="chunk", delay=2)
        ]
    )
    others = np.repeat(counts, counts) - 1
    # an image's references include the caption itself, whose cosine is 1 for every order with a rare n-gram
    with_itself = 10 * (references.norms > 0).mean(1)
    scores = np.maximum(((others + 1) * scores - with_itself) / np.maximum(others, 1), 0)
    compared = scores[others > 0]
    mean = compared.mean() if compared.any() else 0.0
    return np.where((others > 0) & (mean > 0), scores / (mean or 1.0), 1.0)


def _scores(captions: EncodedCaptions, references: References, images: np.ndarray) -> np.ndarray:
    """CIDEr-D of the captions of these images against all captions of their image, concatenated."""
    counts = np.diff(captions.image_offsets)[images]
    present = np.arange(counts.max()) < counts[:, None]
    first, last = captions.image_offsets[images[0]], captions.image_offsets[images[-1] + 1]
    lengths = np.zeros(present.shape, np.int64)
    lengths[present] = references.lengths[first:last]
    ids = np.zeros((*lengths.shape, lengths.max()), np.int64)
    flat = captions.ids[captions.caption_offsets[first] : captions.caption_offsets[last]]
    without_start = np.delete(flat, captions.caption_offsets[first:last] - captions.caption_offsets[first])
    ids[np.arange(ids.shape[2]) < lengths[..., None]] = without_start
    return references.score(images, ids, lengths).cider[present]
