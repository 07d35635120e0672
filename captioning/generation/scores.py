"""Next-token log-probabilities, exact top-k over hypotheses, length rules, and operations on `Hypotheses`."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from captioning.errors import UserError
from captioning.models.decoders.base import reorder_state
from captioning.tensors import Hypotheses
from captioning.text.vocabulary import Vocabulary

PAD = Vocabulary.pad
IMPOSSIBLE = float("-inf")
BLOCK = 1 << 18
"""Numbers normalised at a time on a CPU: 1 MB in float32, half of a typical core's L2 cache."""
LengthRule = Literal["sum", "mean", "gnmt"]


class Candidates(NamedTuple):
    """Continuations of hypotheses, C per image, best first; `logprob` is minus infinity where there are fewer."""

    parents: Tensor  # (B, C) int64: index of the hypothesis that is continued
    ids: Tensor  # (B, C) int64: its next token
    word_logprobs: Tensor  # (B, C) of that token
    logprob: Tensor  # (B, C) of the continued hypothesis

    def take(self, order: Tensor) -> Candidates:
        """The candidates at the indices `order` (B, C')."""
        return Candidates(*(field.gather(1, order) for field in self))

    def first(self, count: int) -> Candidates:
        return Candidates(*(field[:, :count] for field in self))


def next_logprobs(logits: Tensor, suppress_ids: Tensor) -> Tensor:
    """Log-probabilities of the next token over the full vocabulary, then minus infinity for `suppress_ids`.

    The others are not renormalised: suppressed tokens are never chosen but keep their share.

    Args:
        logits: (B, K, V) of any floating type; overwritten unless autograd needs it.
        suppress_ids: (U,) int64.

    Returns:
        (B, K, V), at least float32. The caller may overwrite it.
    """
    logprob = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logprob.device.type != "cpu" or logprob.requires_grad:
        logprob = torch.log_softmax(logprob, -1)
    else:
        # A few images at a time stay in a core's cache, and no second tensor of this size, the largest of a
        # search, is allocated. The fused log_softmax is as fast as a logsumexp.
        for chunk in logprob.split(max(1, BLOCK // max(1, logprob[:1].numel()))):
            chunk.copy_(torch.log_softmax(chunk, -1))
    return logprob.index_fill_(-1, suppress_ids, IMPOSSIBLE)


def best(word_logprobs: Tensor, logprob: Tensor, count: int) -> Candidates:
    """The `count` most likely of the K x V continuations of each image; all where there are fewer.

    Exact. Ties are broken deterministically and independently of the other images.

    Args:
        word_logprobs: (B, K, V) of the next tokens.
        logprob: (B, K) of the sequences so far.
    """
    images, width, size = word_logprobs.shape
    image = torch.arange(images, device=word_logprobs.device)[:, None]
    count = min(count, width * size)
    # topk over rows of V is slow. The best tokens lie in the blocks with the best maxima, so: the maximum of
    # every block, the best blocks, the best tokens in them. This depth makes the last two steps equally large.
    depth = math.isqrt(width * size // count)
    if depth < 4:
        sums, index = (word_logprobs + logprob[..., None]).flatten(1).topk(count)
        parents, ids = index // size, index % size
    else:
        blocks = math.ceil(size / depth)  # block j holds tokens j, j + blocks, j + 2 blocks ...
        full = size // blocks
        maxima = word_logprobs[..., : full * blocks].unflatten(-1, (full, blocks)).amax(-2)  # (B, K, blocks)
        rest = word_logprobs[..., full * blocks :]
        if rest.shape[-1]:
            head = maxima[..., : rest.shape[-1]]
            torch.maximum(head, rest, out=head)
        chosen = (maxima + logprob[..., None]).flatten(1).topk(min(count, width * blocks)).indices  # (B, C)
        inside = torch.arange(0, depth * blocks, blocks, device=chosen.device)
        parents = (chosen // blocks)[..., None].expand(-1, -1, depth).flatten(1)  # (B, C x depth)
        ids = ((chosen % blocks)[..., None] + inside).flatten(1)
        outside = ids >= size
        ids.clamp_(max=size - 1)
        sums = word_logprobs[image, parents, ids] + logprob.gather(1, parents)
        sums, order = sums.masked_fill_(outside, IMPOSSIBLE).topk(count)
        parents, ids = parents.gather(1, order), ids.gather(1, order)
    return Candidates(
        parents=parents, ids=ids, word_logprobs=word_logprobs[image, parents, ids], logprob=sums
    )


def length_score(logprob: Tensor, length: int | Tensor, rule: LengthRule, alpha: float) -> Tensor:
    """The score of captions with this log-probability; it never falls with the length for equal `logprob`.

    sum: logprob. mean: logprob / L. gnmt: logprob / ((5 + L) / 6)^alpha (Wu et al. 2016, eq. 14, no coverage).

    Args:
        logprob: (...), at most 0.
        length: tokens, including `<end>`; a number, or broadcast to `logprob`.
    """
    if rule == "sum":
        return logprob
    if rule == "mean":
        return logprob / length
    return logprob / ((5 + length) / 6) ** alpha


def first_tensor(state: Any) -> Tensor:
    """Any tensor (B, K, ...) of a state, which has its number of images and device."""
    while not isinstance(state, Tensor):
        state = state[0]
    return state


def clear_rows(hypotheses: Hypotheses, empty: Tensor) -> Hypotheses:
    """Empty the rows where `empty` (B, R): no ids, length 0, scores minus infinity."""
    return Hypotheses(
        ids=hypotheses.ids.masked_fill(empty[..., None], PAD),
        lengths=hypotheses.lengths.masked_fill(empty, 0),
        logprob=hypotheses.logprob.masked_fill(empty, IMPOSSIBLE),
        word_logprobs=hypotheses.word_logprobs.masked_fill(empty[..., None], 0.0),
        scores=hypotheses.scores.masked_fill(empty, IMPOSSIBLE),
        finished=hypotheses.finished & ~empty,
    )


def concat(*hypotheses: Hypotheses) -> Hypotheses:
    """The captions of each image in several tuples of hypotheses, one after the other."""
    return Hypotheses(*(torch.cat(fields, 1) for fields in zip(*hypotheses, strict=True)))


def rank(hypotheses: Hypotheses) -> Hypotheses:
    """Sorted: finished captions by score, then unfinished ones, then empty rows. The sort is stable."""
    order = hypotheses.scores.argsort(stable=True, descending=True)
    group = torch.where(hypotheses.finished, 0, 1) + (hypotheses.scores == IMPOSSIBLE).int()  # (B, R)
    return reorder_state(hypotheses, order.gather(1, group.gather(1, order).argsort(stable=True)))


def trim(hypotheses: Hypotheses) -> Hypotheses:
    """Without padding after the longest caption. Raises UserError where log-probabilities are NaN or infinite."""
    if not (hypotheses.logprob < float("inf")).all():
        raise UserError(
            "the decoder's logits are NaN or infinite; the weights are damaged, or training diverged"
        )
    longest = int(hypotheses.lengths.max())
    return hypotheses._replace(
        ids=hypotheses.ids[..., :longest], word_logprobs=hypotheses.word_logprobs[..., :longest]
    )
