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
from captioning.models.decoders.base import reorder_state
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
    """Hypotheses that go on, W an image; `logprob` minus infinity where there are fewer."""

    ids: Tensor  # (B, W, t)
    word_logprobs: Tensor  # (B, W, t)
    logprob: Tensor  # (B, W)


class Beams(NamedTuple):
    """A beam search of each image between two words."""

    live: Live
    kept: Hypotheses  # the best that ended
    ended: Tensor  # (B,) how many ended


def init_beams(words: Tensor, word_logprobs: Tensor, ranking: Ranking) -> Beams:
    """With the prefix `ids` (B, 1, P) alone. One is live at the start: equal copies would tie."""
    images, device = len(words), words.device
    rows = torch.zeros(images, ranking.n_best, device=device)
    room = torch.zeros(images, ranking.n_best, ranking.max_length, device=device)
    kept = Hypotheses(
        ids=room.long(),
        lengths=rows.long(),
        logprob=rows,
        word_logprobs=room,
        scores=rows,
        finished=rows.bool(),
    )
    return Beams(
        live=Live(ids=words, word_logprobs=word_logprobs, logprob=word_logprobs.sum(-1)),
        kept=emptied(kept, torch.ones_like(kept.finished)),
        ended=torch.zeros(images, dtype=torch.int64, device=device),
    )


def advance_beams(
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
        ends = (top.ids == end) & (top.logprob != IMPOSSIBLE)  # (B, C)
        kept = _kept(kept, _ending(live, top, ends, ranking), ranking.n_best)
        ended = ended + ends[:, : ranking.width].sum(1)
        going_on = ends.int().argsort(stable=True)[:, : ranking.width]
        top = reorder_state(top._replace(logprob=top.logprob.masked_fill(ends, IMPOSSIBLE)), going_on)
    else:
        top = Candidates(*(part[:, : ranking.width] for part in top))
    live = _longer(reorder_state(live, top.parents), top)
    enough = math.inf
    if ranking.patience is not None:
        enough = max(ranking.n_best, math.ceil(ranking.width * ranking.patience))
    reach = length_score(live.logprob.amax(1), ranking.max_length, ranking.length_rule, ranking.alpha)
    done = (ended >= enough) | (reach <= kept.scores[:, -1])  # (B,)
    if live.ids.shape[-1] < ranking.max_length:
        live = live._replace(logprob=live.logprob.masked_fill(done[:, None], IMPOSSIBLE))
    return Beams(live, kept, ended), top


def finalize_beams(beams: Beams, ranking: Ranking) -> Hypotheses:
    """What was kept, and in its empty places the best live ones, cut off by the length limit."""
    live = beams.live
    both = ranked(joined(beams.kept, _hypotheses(live, live.logprob != IMPOSSIBLE, False, ranking)))
    return Hypotheses(*(part[:, : ranking.n_best] for part in both))


def _longer(live: Live, top: Candidates) -> Live:
    return Live(
        ids=torch.cat([live.ids, top.ids[..., None]], -1),
        word_logprobs=torch.cat([live.word_logprobs, top.word_logprobs[..., None]], -1),
        logprob=top.logprob,
    )


def _ending(live: Live, top: Candidates, ends: Tensor, ranking: Ranking) -> Hypotheses:
    """Those of the first `width` candidates that end, as hypotheses; the others empty."""
    first = Candidates(*(part[:, : ranking.width] for part in top))
    return _hypotheses(
        _longer(reorder_state(live, first.parents), first), ends[:, : ranking.width], True, ranking
    )


def _hypotheses(live: Live, exists: Tensor, finished: bool, ranking: Ranking) -> Hypotheses:
    length = live.ids.shape[-1]
    behind = (0, ranking.max_length - length)
    found = Hypotheses(
        ids=F.pad(live.ids, behind, value=PAD),
        lengths=torch.full_like(live.ids[..., 0], length),
        logprob=live.logprob,
        word_logprobs=F.pad(live.word_logprobs, behind),
        scores=length_score(live.logprob, length, ranking.length_rule, ranking.alpha),
        finished=torch.full_like(exists, finished),
    )
    return emptied(found, ~exists)


def joined(first: Hypotheses, second: Hypotheses) -> Hypotheses:
    return Hypotheses(*(torch.cat(parts, 1) for parts in zip(first, second, strict=True)))


def _kept(kept: Hypotheses, found: Hypotheses, count: int) -> Hypotheses:
    """The best `count` by score, among equals those found earlier."""
    both = joined(kept, found)
    return reorder_state(both, both.scores.argsort(stable=True, descending=True)[:, :count])
