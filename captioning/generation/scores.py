"""What searches share: log-probabilities of next words, the best of many, length rules."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from captioning.errors import UserError
from captioning.models.decoders.base import reorder_state
from captioning.tensors import Hypotheses
from captioning.text.vocabulary import Vocabulary

PAD = Vocabulary.pad
IMPOSSIBLE = float("-inf")
BLOCK = 1 << 18
"""Numbers that are normalised at a time on a CPU: a megabyte in float32, half of a usual core's own cache."""
LengthRule = Literal["sum", "mean", "gnmt"]
Length = TypeVar("Length", int, Tensor)


class Candidates(NamedTuple):
    """Ways to go on, C an image, best first by `logprob`; where fewer exist `logprob` is minus infinity."""

    parents: Tensor  # (B, C) int64: the sequence of the image that goes on
    ids: Tensor  # (B, C) int64: its next word
    word_logprobs: Tensor  # (B, C)
    logprob: Tensor  # (B, C): of the sequence with that word


def next_logprobs(logits: Tensor, banned: Tensor) -> Tensor:
    """Log-probabilities of the next word over the full vocabulary, then minus infinity for `banned` words.

    The others are not renormalised: what is banned takes no part in the choice and keeps its share.

    Args:
        logits: (B, K, V) of any floating type; written into, where autograd does not need it.
        banned: (U,) int64 ids.

    Returns:
        (B, K, V), float32 at least. The caller may write into it: further rules on what is chosen go there.
    """
    logprob = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logprob.device.type != "cpu" or logprob.requires_grad:
        logprob = torch.log_softmax(logprob, -1)
    else:
        # A few images at a time stay in a core's cache, and a second tensor of this size, the largest of a search,
        # would cost its memory and the time to get it. The fused log_softmax is no slower than a logsumexp.
        for part in logprob.split(max(1, BLOCK // max(1, logprob[:1].numel()))):
            part.copy_(torch.log_softmax(part, -1))
    return logprob.index_fill_(-1, banned, IMPOSSIBLE)


def best(word_logprobs: Tensor, logprob: Tensor, count: int) -> Candidates:
    """The `count` best of the K x V ways to go on, for each image; all of them where there are fewer.

    Exact. Among equals the choice is deterministic and independent of the other images.

    Args:
        word_logprobs: (B, K, V) of the next words.
        logprob: (B, K) of the sequences so far.
    """
    images, width, size = word_logprobs.shape
    image = torch.arange(images, device=word_logprobs.device)[:, None]
    count = min(count, width * size)
    # topk over rows of V is slow. No word is among the best whose block's best is not, so: the maximum of
    # each block, the best blocks, the best inside those. As many words a block as makes the last two equal.
    depth = math.isqrt(width * size // count)
    if depth < 4:
        sums, index = (word_logprobs + logprob[..., None]).flatten(1).topk(count)
        parents, words = index // size, index % size
    else:
        blocks = math.ceil(size / depth)  # block j is words j, j + blocks, j + 2 blocks ...
        full = size // blocks
        maxima = word_logprobs[..., : full * blocks].unflatten(-1, (full, blocks)).amax(-2)  # (B, K, blocks)
        rest = word_logprobs[..., full * blocks :]
        if rest.shape[-1]:
            head = maxima[..., : rest.shape[-1]]
            torch.maximum(head, rest, out=head)
        chosen = (maxima + logprob[..., None]).flatten(1).topk(min(count, width * blocks)).indices  # (B, C)
        inside = torch.arange(0, depth * blocks, blocks, device=chosen.device)
        parents = (chosen // blocks)[..., None].expand(-1, -1, depth).flatten(1)  # (B, C x depth)
        words = ((chosen % blocks)[..., None] + inside).flatten(1)
        outside = words >= size
        words.clamp_(max=size - 1)
        sums = word_logprobs[image, parents, words] + logprob.gather(1, parents)
        sums, order = sums.masked_fill_(outside, IMPOSSIBLE).topk(count)
        parents, words = parents.gather(1, order), words.gather(1, order)
    return Candidates(
        parents=parents, ids=words, word_logprobs=word_logprobs[image, parents, words], logprob=sums
    )


def length_score(logprob: Tensor, length: Length, rule: LengthRule, alpha: float) -> Tensor:
    """`logprob` under the length rule, never falling with the length for the same `logprob`.

    sum: logprob. mean: logprob / L. gnmt: logprob / ((5 + L) / 6)^alpha (Wu et al. 2016, eq. 14, without coverage).

    Args:
        logprob: (...), at most 0.
        length: words, `<end>` counted; a number or broadcast to `logprob`.
    """
    if rule == "sum":
        return logprob
    if rule == "mean":
        return logprob / length
    return logprob / ((5 + length) / 6) ** alpha


def first_tensor(state: Any) -> Tensor:
    """Any tensor (B, K, ...) of a carry: it tells the number of images and the device."""
    while not isinstance(state, Tensor):
        state = state[0]
    return state


def ids_on(ids: Collection[int], device: torch.device) -> Tensor:
    """(U,) int64, each id once."""
    return torch.tensor(sorted(set(ids)), dtype=torch.int64, device=device)


def check(
    size: int, *, start: int, end: int, suppress_ids: Collection[int], others: Collection[int] = ()
) -> None:
    """Raises ValueError where an id is not of a vocabulary of `size`, or `end` may not be produced."""
    if outside := [word for word in (start, end, *suppress_ids, *others) if not 0 <= word < size]:
        raise ValueError(f"ids run from 0 to {size - 1}, got {outside[0]}")
    if end in suppress_ids:
        raise ValueError(f"the end of a caption, {end}, cannot be among the unwanted ids")


def check_lengths(least: int, most: int) -> None:
    """Raises ValueError where a search's `min_length` and `max_length` contradict one another."""
    if not 0 <= least <= most or most < 1:
        raise ValueError(
            f"min_length must be from 0 to max_length, and that at least 1, got {least} and {most}"
        )


def emptied(found: Hypotheses, empty: Tensor) -> Hypotheses:
    """With nothing in the rows where `empty` (B, R): no words, length 0, minus infinity."""
    return Hypotheses(
        ids=found.ids.masked_fill(empty[..., None], PAD),
        lengths=found.lengths.masked_fill(empty, 0),
        logprob=found.logprob.masked_fill(empty, IMPOSSIBLE),
        word_logprobs=found.word_logprobs.masked_fill(empty[..., None], 0.0),
        scores=found.scores.masked_fill(empty, IMPOSSIBLE),
        finished=found.finished & ~empty,
    )


def ranked(found: Hypotheses) -> Hypotheses:
    """Best first: finished ones by their score, then those cut off, then empty rows. Equals keep their order."""
    order = found.scores.argsort(stable=True, descending=True)
    rank = torch.where(found.finished, 0, 1) + (found.scores == IMPOSSIBLE).int()  # (B, R)
    order = order.gather(1, rank.gather(1, order).argsort(stable=True))
    return reorder_state(found, order)


def trimmed(found: Hypotheses) -> Hypotheses:
    """Without the padding behind the longest caption. Raises UserError where the numbers are none."""
    if not (found.logprob < float("inf")).all():
        raise UserError(
            "the decoder's logits are NaN or infinite; damaged weights, or training that diverged"
        )
    longest = int(found.lengths.max())
    return found._replace(ids=found.ids[..., :longest], word_logprobs=found.word_logprobs[..., :longest])
