"""Beam search over any Decoder. Knows ids, never words or pixels."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from captioning.decoders.base import Decoder, select
from captioning.decoders.packed import for_rows
from captioning.search.scores import (
    IMPOSSIBLE,
    PAD,
    Candidates,
    LengthRule,
    best,
    check,
    check_lengths,
    emptied,
    first_tensor,
    ids_on,
    length_score,
    next_logp,
    trimmed,
)
from captioning.tensors import Hypotheses


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """`width` live hypotheses an image; the best `n_best` captions are returned.

    Attributes:
        max_length: most words of a caption, `<end>` counted.
        min_length: fewest words before `<end>`; equal to `max_length`, every caption has exactly that many.
        length_rule: what captions are ranked by: the sum of their log-probabilities, its mean over words, or
            that of `gnmt`, which alone reads `alpha`. See `scores.length_score`.
        patience: an image is done when `width` x `patience` hypotheses have ended (Kasai et al. 2022; 1 is
            what most programs do); null: only when no live hypothesis can rank among the best `n_best` any
            more, or at `max_length`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    kind: Literal["beam"] = "beam"
    width: Annotated[int, Field(ge=1)] = 5
    n_best: Annotated[int, Field(ge=1)] = 1
    max_length: Annotated[int, Field(ge=1)] = 20
    min_length: Annotated[int, Field(ge=0)] = 1
    length_rule: LengthRule = "mean"
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.6
    patience: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.n_best <= self.width:
            raise ValueError(f"n_best must be from 1 to width, got {self.n_best} and {self.width}")
        check_lengths(self.min_length, self.max_length)

    def search(
        self, decoder: Decoder, memory: Any, *, start: int, end: int, unwanted: Collection[int]
    ) -> Hypotheses:
        return beam(decoder, memory, self, start=start, end=end, unwanted=unwanted)


class Live(NamedTuple):
    """Hypotheses that go on, W an image, best first by `logp`; minus infinity where there are fewer."""

    words: Tensor  # (B, W, t)
    word_logp: Tensor  # (B, W, t)
    logp: Tensor  # (B, W)


def beam(
    decoder: Decoder, memory: Any, config: BeamConfig, *, start: int, end: int, unwanted: Collection[int]
) -> Hypotheses:
    """The best captions of each image, R = `n_best`, by a beam search. See `captioning.search.search`.

    At each word the 2 x width best ways to go on from the live hypotheses are ranked by log-probability.
    Those among the first `width` that end are kept by their score; the first `width` that do not end live
    on. An image is done by `patience`, or, which changes no result, when the best that its live hypotheses
    can still reach would not be kept. Unfinished hypotheses are returned only in places for which there are
    not enough finished ones, behind these.
    """
    check(decoder.vocabulary_size, start=start, end=end, unwanted=unwanted)
    carry = decoder.start(memory, 1)  # one live hypothesis at the start: `width` equal copies would tie
    any_tensor = first_tensor(carry)
    device, images = any_tensor.device, len(any_tensor)
    decoder = for_rows(decoder, images * config.width)
    never, early = (ids_on(ids, device) for ids in (unwanted, (*unwanted, end)))
    enough = math.inf
    if config.patience is not None:
        enough = max(config.n_best, math.ceil(config.width * config.patience))
    reading = torch.full((images, 1), start, device=device)  # (B, W)
    live, kept = _nothing_yet(images, config, device)
    ended_so_far = torch.zeros(images, dtype=torch.int64, device=device)
    for length in range(1, config.max_length + 1):
        step, carry = decoder.step(reading, carry, memory)
        may_end = length > config.min_length
        word_logp = next_logp(decoder.logits(step.hidden), never if may_end else early)
        top = best(word_logp, live.logp.to(word_logp.dtype), 2 * config.width)
        if may_end:
            # each live hypothesis ends in one way, so `width` of the 2 x width go on at least
            ended = (top.words == end) & (top.logp != IMPOSSIBLE)  # (B, C)
            kept = _kept(kept, _ending(live, top, ended, length, config), config.n_best)
            ended_so_far += ended[:, : config.width].sum(1)
            going_on = ended.int().argsort(stable=True)[:, : config.width]
            top = select(top._replace(logp=top.logp.masked_fill(ended, IMPOSSIBLE)), going_on)
        else:
            top = Candidates(*(part[:, : config.width] for part in top))
        live = _longer(select(live, top.parents), top)
        if length == config.max_length:
            break
        reach = length_score(live.logp[:, 0], config.max_length, config.length_rule, config.alpha)
        done = (ended_so_far >= enough) | (reach <= kept.scores[:, -1])  # (B,)
        live = live._replace(logp=live.logp.masked_fill(done[:, None], IMPOSSIBLE))
        if (live.logp == IMPOSSIBLE).all():
            break
        carry, reading = select(carry, top.parents), top.words
    return trimmed(_with_unfinished(kept, live, config))


def _nothing_yet(images: int, config: BeamConfig, device: torch.device) -> tuple[Live, Hypotheses]:
    none = torch.zeros(images, 1, 0, device=device)
    live = Live(words=none.long(), word_logp=none, logp=none.sum(-1))
    rows = torch.zeros(images, config.n_best, device=device)
    words = torch.zeros(images, config.n_best, config.max_length, device=device)
    kept = Hypotheses(
        words=words.long(), lengths=rows.long(), logp=rows, word_logp=words, scores=rows, finished=rows.bool()
    )
    return live, emptied(kept, torch.ones_like(kept.finished))


def _longer(live: Live, top: Candidates) -> Live:
    return Live(
        words=torch.cat([live.words, top.words[..., None]], -1),
        word_logp=torch.cat([live.word_logp, top.word_logp[..., None]], -1),
        logp=top.logp,
    )


def _ending(live: Live, top: Candidates, ended: Tensor, length: int, config: BeamConfig) -> Hypotheses:
    """Those of the first `width` candidates that ended, as hypotheses; the others empty."""
    first = Candidates(*(part[:, : config.width] for part in top))
    return _hypotheses(_longer(select(live, first.parents), first), ended[:, : config.width], True, config)


def _hypotheses(live: Live, exists: Tensor, finished: bool, config: BeamConfig) -> Hypotheses:
    length = live.words.shape[-1]
    behind = (0, config.max_length - length)
    found = Hypotheses(
        words=F.pad(live.words, behind, value=PAD),
        lengths=torch.full_like(live.words[..., 0], length),
        logp=live.logp,
        word_logp=F.pad(live.word_logp, behind),
        scores=length_score(live.logp, length, config.length_rule, config.alpha),
        finished=torch.full_like(exists, finished),
    )
    return emptied(found, ~exists)


def _joined(first: Hypotheses, second: Hypotheses) -> Hypotheses:
    return Hypotheses(*(torch.cat(parts, 1) for parts in zip(first, second, strict=True)))


def _kept(kept: Hypotheses, found: Hypotheses, count: int) -> Hypotheses:
    """The best `count` by score, among equals those found earlier."""
    both = _joined(kept, found)
    return select(both, both.scores.argsort(stable=True, descending=True)[:, :count])


def _with_unfinished(kept: Hypotheses, live: Live, config: BeamConfig) -> Hypotheses:
    """`kept`, and in its empty places the best live ones."""
    both = _joined(kept, _hypotheses(live, live.logp != IMPOSSIBLE, False, config))
    rank = torch.where(both.finished, 0, 1) + (both.scores == IMPOSSIBLE).int()
    return select(both, rank.argsort(stable=True)[:, : config.n_best])
