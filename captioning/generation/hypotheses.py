"""Hypotheses that go on and those that have ended: the bookkeeping of beam searches. Knows ids, no decoder."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from captioning.generation.scores import (
    IMPOSSIBLE,
    PAD,
    Candidates,
    LengthRule,
    emptied,
    length_score,
    ranked,
)
from captioning.models.decoders.base import select
from captioning.tensors import Hypotheses


class Ranking(NamedTuple):
    """How many hypotheses live, how many captions are kept, and how these compare."""

    width: int
    n_best: int
    max_length: int
    length_rule: LengthRule
    alpha: float
    patience: float | None


class Live(NamedTuple):
    """Hypotheses that go on, W an image; `logp` minus infinity where there are fewer."""

    words: Tensor  # (B, W, t)
    word_logp: Tensor  # (B, W, t)
    logp: Tensor  # (B, W)


class Beams(NamedTuple):
    """A beam search of each image between two words."""

    live: Live
    kept: Hypotheses  # the best that ended
    ended: Tensor  # (B,) how many ended


def opened(words: Tensor, word_logp: Tensor, ranking: Ranking) -> Beams:
    """With the prefix `words` (B, 1, P) alone. One is live at the start: equal copies would tie."""
    images, device = len(words), words.device
    rows = torch.zeros(images, ranking.n_best, device=device)
    room = torch.zeros(images, ranking.n_best, ranking.max_length, device=device)
    kept = Hypotheses(
        words=room.long(), lengths=rows.long(), logp=rows, word_logp=room, scores=rows, finished=rows.bool()
    )
    return Beams(
        live=Live(words=words, word_logp=word_logp, logp=word_logp.sum(-1)),
        kept=emptied(kept, torch.ones_like(kept.finished)),
        ended=torch.zeros(images, dtype=torch.int64, device=device),
    )


def grown(
    beams: Beams, top: Candidates, ranking: Ranking, *, may_end: bool, end: int
) -> tuple[Beams, Candidates]:
    """One word further: the beams, and the candidates that became their live hypotheses.

    Those among the first `width` candidates that end are kept by their score; the first `width` that do not
    end live on. An image is done (nothing in it lives) by `patience`, or, which changes no result, when the
    best that its live hypotheses can still reach would not be kept.

    Args:
        top: ways to go on, in the order in which they are wanted; 2 x `width` where so many exist.
    """
    live, kept, ended = beams
    if may_end:
        # each live hypothesis ends in one way, so `width` of the 2 x width go on at least
        ends = (top.words == end) & (top.logp != IMPOSSIBLE)  # (B, C)
        kept = _kept(kept, _ending(live, top, ends, ranking), ranking.n_best)
        ended = ended + ends[:, : ranking.width].sum(1)
        going_on = ends.int().argsort(stable=True)[:, : ranking.width]
        top = select(top._replace(logp=top.logp.masked_fill(ends, IMPOSSIBLE)), going_on)
    else:
        top = Candidates(*(part[:, : ranking.width] for part in top))
    live = _longer(select(live, top.parents), top)
    enough = math.inf
    if ranking.patience is not None:
        enough = max(ranking.n_best, math.ceil(ranking.width * ranking.patience))
    reach = length_score(live.logp.amax(1), ranking.max_length, ranking.length_rule, ranking.alpha)
    done = (ended >= enough) | (reach <= kept.scores[:, -1])  # (B,)
    if live.words.shape[-1] < ranking.max_length:
        live = live._replace(logp=live.logp.masked_fill(done[:, None], IMPOSSIBLE))
    return Beams(live, kept, ended), top


def closed(beams: Beams, ranking: Ranking) -> Hypotheses:
    """What was kept, and in its empty places the best live ones, cut off by the length limit."""
    live = beams.live
    both = ranked(joined(beams.kept, _hypotheses(live, live.logp != IMPOSSIBLE, False, ranking)))
    return Hypotheses(*(part[:, : ranking.n_best] for part in both))


def _longer(live: Live, top: Candidates) -> Live:
    return Live(
        words=torch.cat([live.words, top.words[..., None]], -1),
        word_logp=torch.cat([live.word_logp, top.word_logp[..., None]], -1),
        logp=top.logp,
    )


def _ending(live: Live, top: Candidates, ends: Tensor, ranking: Ranking) -> Hypotheses:
    """Those of the first `width` candidates that end, as hypotheses; the others empty."""
    first = Candidates(*(part[:, : ranking.width] for part in top))
    return _hypotheses(_longer(select(live, first.parents), first), ends[:, : ranking.width], True, ranking)


def _hypotheses(live: Live, exists: Tensor, finished: bool, ranking: Ranking) -> Hypotheses:
    length = live.words.shape[-1]
    behind = (0, ranking.max_length - length)
    found = Hypotheses(
        words=F.pad(live.words, behind, value=PAD),
        lengths=torch.full_like(live.words[..., 0], length),
        logp=live.logp,
        word_logp=F.pad(live.word_logp, behind),
        scores=length_score(live.logp, length, ranking.length_rule, ranking.alpha),
        finished=torch.full_like(exists, finished),
    )
    return emptied(found, ~exists)


def joined(first: Hypotheses, second: Hypotheses) -> Hypotheses:
    return Hypotheses(*(torch.cat(parts, 1) for parts in zip(first, second, strict=True)))


def _kept(kept: Hypotheses, found: Hypotheses, count: int) -> Hypotheses:
    """The best `count` by score, among equals those found earlier."""
    both = joined(kept, found)
    return select(both, both.scores.argsort(stable=True, descending=True)[:, :count])
