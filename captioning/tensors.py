"""The named tuples of tensors that travel between rooms. They hold; they do not compute.

The legend of letters, used in every docstring and comment:

    B  images                      N  regions of an image (grid cells)
    K  sequences of one image      D  channels of a region
    T  words of a sequence         V  words of the vocabulary
    H  hidden size                 E  embedding size       A  attention size
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from captioning.records import ImageId


class Features(NamedTuple):
    """What an encoder gives: once per image, never copied per caption or beam."""

    regions: Tensor  # (B, N, D) float
    valid: Tensor | None = None  # (B, N) bool: True where there is a region; None: everywhere


class Batch(NamedTuple):
    """A training batch on the K axis: B images with K captions each.

    The captions of one image stand longest first, so that those still running at word t are `[:batch_sizes[t]]`.
    """

    image_ids: list[ImageId]
    images: Features | Tensor  # stored features, or pixels (B, 3, height, width)
    ids: Tensor  # (B, K, T + 1) int64: <start> ... <end>, then <pad>; all <pad> where a caption is missing
    batch_sizes: tuple[
        int, ...
    ]  # T numbers: the largest number of captions of one image with more than t targets
    tokens: int  # targets that count (words and <end>), over the batch
    weights: Tensor | None = None  # (B, K) float32, of the captions in the loss; None: 1


class Gates(NamedTuple):
    """What one recurrent layer did with a word, all after their sigmoid or tanh; None where it has no such thing.

    References to what the step computes in any case: looking at them changes no number.
    """

    hidden: Tensor  # (B, K, H), after the word, as all of them
    input: Tensor | None = None  # (B, K, H)
    forget: Tensor | None = None  # (B, K, H)
    candidate: Tensor | None = None  # (B, K, H)
    output: Tensor | None = None  # (B, K, H)
    cell: Tensor | None = None  # (B, K, H)
    reset: Tensor | None = None  # (B, K, H)
    update: Tensor | None = None  # (B, K, H)
    sentinel: Tensor | None = None  # (B, K), the attention's weight on the sentinel


class StepOutput(NamedTuple):
    """One word's worth of decoding."""

    hidden: Tensor  # (B, K, H): what `Decoder.logits` takes
    attention: Tensor | None  # (B, K, N), rows sum to 1; None where the decoder has none to show
    gates: tuple[Gates, ...] = ()  # of each recurrent layer, the lowest first


class SampledRegions(NamedTuple):
    """Regions that a decoder chose at random while training, and how it is to learn from that."""

    regions: Tensor  # (B, K, T) int64, drawn from the attention
    sampled: Tensor  # (B, 1) bool: images of which the drawn regions were used
    baseline: Tensor  # (): the decoder's moving average of captions' log-likelihood; NaN before the first
    reward: float  # weight of the REINFORCE term
    entropy: float  # weight of the attention's entropy


class SequenceOutput(NamedTuple):
    """A whole caption's worth of decoding, teacher forced."""

    hidden: Tensor  # (B, K, T, H)
    attention: Tensor | None  # (B, K, T, N)
    sampled_regions: SampledRegions | None = None  # None: nothing was chosen at random


class Hypotheses(NamedTuple):
    """What a search found: R captions an image, best first by `scores`."""

    ids: Tensor  # (B, R, T) int64: no <start>; <end> where it was produced, then <pad>
    lengths: Tensor  # (B, R) int64: words, counting <end>
    logprob: Tensor  # (B, R): sum of the words' log-probabilities, nats
    word_logprobs: Tensor  # (B, R, T): each word's own, 0 behind the end
    scores: Tensor  # (B, R): `logprob` under the length rule
    finished: Tensor  # (B, R) bool: False where the length limit cut the caption off
