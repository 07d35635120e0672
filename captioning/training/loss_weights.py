"""What captions and words weigh in the cross-entropy, from the training split's captions. Knows ids, no model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from captioning.loaders.batches import EncodedCaptions
from captioning.text.vocabulary import SPECIALS, Vocabulary
from captioning.training.config import FrequencyConfig, TrainingConfig, WordWeightsConfig
from captioning.training.rewards import References

_TOGETHER = 512  # images that are scored at a time


class Weights(NamedTuple):
    """A token weighs the product; the mean over the split's tokens is 1. None: all weigh 1."""

    captions: np.ndarray | None = None  # (S,) float32, in the order of the captions
    words: np.ndarray | None = None  # (V,) float32


def compute_loss_weights(
    captions: EncodedCaptions, vocabulary: Vocabulary, config: TrainingConfig
) -> Weights:
    """The weights that `config` asks for. `captions` are those of the training split, each counted once."""
    own = words = None
    target = np.ones(len(captions.words), bool)
    target[captions.start[:-1]] = False  # `<start>` is never said
    said = captions.words[target]
    mean = np.ones(len(said))
    if config.word_weights:
        words = word_weights(said, config.word_weights, size=len(vocabulary))
        mean = words[said]
    if config.caption_weights:
        strength = config.caption_weights.strength
        own = 1 - strength + strength * consensus(captions, vocabulary_size=len(vocabulary))
        mean = mean * np.repeat(own, np.diff(captions.start) - 1)
        own = (own / mean.mean()).astype(np.float32)
    elif words is not None:
        words = words / mean.mean()
    return Weights(own, None if words is None else words.astype(np.float32))


def word_weights(said: np.ndarray, config: WordWeightsConfig, *, size: int) -> np.ndarray:
    """(V,) float64, 1 in the mean over the words `said` (M,).

    `<end>` and `<unk>` weigh 1: they are common, and a caption whose end weighs little goes on and on.
    """
    counts = np.bincount(said, minlength=size).astype(float)
    seen = np.maximum(counts, 1)
    if isinstance(config, FrequencyConfig):
        weights = seen**-config.power
    else:
        weights = (1 - config.beta) / (1 - config.beta**seen)
    counts[: len(SPECIALS)] = 0
    weights /= (counts * weights).sum() / max(1.0, counts.sum())
    weights[: len(SPECIALS)] = 1
    return weights


def consensus(captions: EncodedCaptions, *, vocabulary_size: int) -> np.ndarray:
    """(S,) each caption's CIDEr-D beside the image's others, over the mean of all; 1 where there are no others.

    With document frequencies over the split's images and `<end>` as a word, as rewards have it.
    """
    references = References(captions, vocabulary_size=vocabulary_size)
    counts = np.diff(captions.first)
    scores = np.concatenate([_scores(captions, references, images) for images in _parts(len(counts))])
    others = np.repeat(counts, counts) - 1
    # the references of an image hold the caption itself, whose cosine is 1 wherever it has a rare n-gram
    itself = 10 * (references.norms > 0).mean(1)
    scores = np.maximum(((others + 1) * scores - itself) / np.maximum(others, 1), 0)
    known = scores[others > 0]
    mean = known.mean() if known.any() else 0.0
    return np.where((others > 0) & (mean > 0), scores / (mean or 1.0), 1.0)


def _parts(images: int) -> list[np.ndarray]:
    starts = tqdm(range(0, images, _TOGETHER), desc="weighing captions", disable=None, delay=2)
    return [np.arange(start, min(images, start + _TOGETHER)) for start in starts]


def _scores(captions: EncodedCaptions, references: References, images: np.ndarray) -> np.ndarray:
    """CIDEr-D of the captions of these images beside all of them, one after the other."""
    counts = np.diff(captions.first)[images]
    lengths = np.zeros((len(images), counts.max()), np.int64)
    there = np.arange(counts.max()) < counts[:, None]
    first, last = captions.first[images[0]], captions.first[images[-1] + 1]
    lengths[there] = references.lengths[first:last]
    words = np.zeros((*lengths.shape, lengths.max()), np.int64)
    own = captions.words[captions.start[first] : captions.start[last]]
    words[np.arange(words.shape[2]) < lengths[..., None]] = np.delete(
        own, captions.start[first:last] - captions.start[first]
    )
    return references.score(images, words, lengths).cider[there]
