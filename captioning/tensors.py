"""Named tuples of tensors that are passed between packages.

Letters used in all docstrings and comments:

    B  images                      N  regions of an image (grid cells)
    K  sequences of one image      D  channels of a region
    T  tokens of a sequence        V  tokens of the vocabulary
    H  hidden size                 E  embedding size       A  attention size
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captioning.records import ImageId


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch or NumPy means that memory ran out, on a GPU or not."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    signs = ("allocate memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that cannot compute in float64."""


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has no float64."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


class Features(NamedTuple):
    """The output of an encoder, once per image: never copied per caption or hypothesis."""

    regions: Tensor  # (B, N, D) float
    mask: Tensor | None = None  # (B, N) bool: False for padding; None: no padding
    boxes: Tensor | None = None  # (B, N, 4): left, top, right, bottom, as shares of the image; None: a grid


class Batch(NamedTuple):
    """A training batch of B images with K captions each.

    The captions of an image are sorted by length, longest first, so that those with more than t targets are the
    first `batch_sizes[t]`.
    """

    image_ids: list[ImageId]
    images: Features | Tensor  # stored features, or pixels (B, 3, height, width)
    ids: Tensor  # (B, K, T + 1) int64: <start> ... <end>, then <pad>; all <pad> where a caption is missing
    batch_sizes: tuple[int, ...]  # T numbers: the most captions of any image that have more than t targets
    tokens: int  # number of targets (words and <end>) in the batch
    weights: Tensor | None = None  # (B, K) float32: weight of each caption in the loss; None: 1


class Gates(NamedTuple):
    """The gates and states of one recurrent layer at one step, after sigmoid or tanh; None where a cell has none.

    These are the tensors that the step computes anyway: reading them changes no number.
    """

    hidden: Tensor  # (B, K, H), after the step, like all others
    input: Tensor | None = None  # (B, K, H)
    forget: Tensor | None = None  # (B, K, H)
    candidate: Tensor | None = None  # (B, K, H)
    output: Tensor | None = None  # (B, K, H)
    cell: Tensor | None = None  # (B, K, H)
    reset: Tensor | None = None  # (B, K, H)
    update: Tensor | None = None  # (B, K, H)
    sentinel: Tensor | None = None  # (B, K): the attention's weight on the sentinel


class StepOutput(NamedTuple):
    """The output of a decoder for one token per sequence."""

    hidden: Tensor  # (B, K, H): the input of `Decoder.logits`
    attention: Tensor | None  # (B, K, N), rows sum to 1; None for decoders without attention
    gates: tuple[Gates, ...] = ()  # of every recurrent layer, the lowest first


class SampledRegions(NamedTuple):
    """Regions that hard attention sampled, and the weights of its loss terms in cross-entropy."""

    regions: Tensor  # (B, K, T) int64, sampled from the attention
    sampled: (
        Tensor | None
    )  # (B, 1) bool: images that used the sampled regions, not the expected one; None: all
    baseline: Tensor  # (): moving average of the captions' log-likelihood; NaN before the first update
    reward: float  # weight of the REINFORCE term
    entropy: float  # weight of the attention's entropy


class SequenceOutput(NamedTuple):
    """The output of a decoder for whole captions, with teacher forcing."""

    hidden: Tensor  # (B, K, T, H)
    attention: Tensor | None  # (B, K, T, N)
    sampled_regions: SampledRegions | None = None  # of hard attention in training mode


class Hypotheses(NamedTuple):
    """The result of a search: R captions per image, by falling `scores`."""

    ids: Tensor  # (B, R, T) int64, without <start>: words, <end> unless cut off, then <pad>
    lengths: Tensor  # (B, R) int64: number of words, including <end>
    logprob: Tensor  # (B, R): sum of the words' log-probabilities, in nats
    word_logprobs: Tensor  # (B, R, T): of every word; 0 after the end
    scores: Tensor  # (B, R): `logprob` after length normalisation
    finished: Tensor  # (B, R) bool: False where the length limit cut the caption off
