"""The state of a beam search between two steps: active hypotheses and the best finished ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from captioning.generation.base import BeamSearchConfig
from captioning.generation.scores import IMPOSSIBLE, PAD, Candidates, clear_rows, concat, rank
from captioning.models.decoders.base import reorder_state
from captioning.tensors import Hypotheses


class ActiveHypotheses(NamedTuple):
    """Unfinished hypotheses, W per image; `logprob` is minus infinity where there are fewer."""

    ids: Tensor  # (B, W, t)
    word_logprobs: Tensor  # (B, W, t)
    logprob: Tensor  # (B, W)

    def extend(self, candidates: Candidates) -> ActiveHypotheses:
        parents: ActiveHypotheses = reorder_state(self, candidates.parents)
        return ActiveHypotheses(
            ids=torch.cat([parents.ids, candidates.ids[..., None]], -1),
            word_logprobs=torch.cat([parents.word_logprobs, candidates.word_logprobs[..., None]], -1),
            logprob=candidates.logprob,
        )


class Beams(NamedTuple):
    """A beam search of each image between two steps."""

    active: ActiveHypotheses
    finished: Hypotheses  # the best `n_best`
    num_finished: Tensor  # (B,) of all that finished


def init_beams(ids: Tensor, word_logprobs: Tensor, config: BeamSearchConfig) -> Beams:
    """Beams with the prefix `ids` (B, 1, P): one active hypothesis, as W equal ones would tie."""
    images, device = len(ids), ids.device
    zeros = torch.zeros(images, config.n_best, device=device)
    padding = torch.zeros(images, config.n_best, config.max_length, device=device)
    empty = Hypotheses(
        ids=padding.long(),
        lengths=zeros.long(),
        logprob=zeros,
        word_logprobs=padding,
        scores=zeros,
        finished=zeros.bool(),
    )
    return Beams(
        active=ActiveHypotheses(ids=ids, word_logprobs=word_logprobs, logprob=word_logprobs.sum(-1)),
        finished=clear_rows(empty, torch.ones_like(empty.finished)),
        num_finished=torch.zeros(images, dtype=torch.int64, device=device),
    )


def advance_beams(
    beams: Beams, candidates: Candidates, config: BeamSearchConfig, *, end: int
) -> tuple[Beams, Candidates]:
    """One step: the new beams, and the candidates that became their active hypotheses.

    Of the first `width` candidates those with `<end>` are finished hypotheses, kept by score; the first
    `width` candidates without `<end>` become active. An image is done (no active hypotheses) by `patience`, or,
    which changes no result, when its active hypotheses can no longer reach the score of the kept ones.

    Args:
        candidates: best first; 2 x `width` where so many exist.
    """
    active, finished, num_finished = beams
    width = config.width
    if active.ids.shape[-1] >= config.min_length:
        # each hypothesis has one candidate with <end>, so at least `width` of 2 x width have none
        ends = (candidates.ids == end) & (candidates.logprob != IMPOSSIBLE)  # (B, C)
        ended = _hypotheses(active.extend(candidates.first(width)), ends[:, :width], True, config)
        finished = _best(concat(finished, ended), config.n_best)
        num_finished = num_finished + ends[:, :width].sum(1)
        unfinished = ends.int().argsort(stable=True)[:, :width]
        candidates = candidates._replace(logprob=candidates.logprob.masked_fill(ends, IMPOSSIBLE))
        candidates = candidates.take(unfinished)
    else:
        candidates = candidates.first(width)
    active = active.extend(candidates)
    enough = math.inf
    if config.patience is not None:
        enough = max(config.n_best, math.ceil(width * config.patience))
    bound = config.score(active.logprob.amax(1), config.max_length)
    done = (num_finished >= enough) | (bound <= finished.scores[:, -1])  # (B,)
    if active.ids.shape[-1] < config.max_length:
        active = active._replace(logprob=active.logprob.masked_fill(done[:, None], IMPOSSIBLE))
    return Beams(active, finished, num_finished), candidates


def finalize_beams(beams: Beams, config: BeamSearchConfig) -> Hypotheses:
    """The finished hypotheses, and in empty places the best active ones, cut off at `max_length`."""
    exists = beams.active.logprob != IMPOSSIBLE
    ranked = rank(concat(beams.finished, _hypotheses(beams.active, exists, False, config)))
    return Hypotheses(*(field[:, : config.n_best] for field in ranked))


def _hypotheses(
    active: ActiveHypotheses, exists: Tensor, finished: bool, config: BeamSearchConfig
) -> Hypotheses:
    length = active.ids.shape[-1]
    padding = (0, config.max_length - length)
    hypotheses = Hypotheses(
        ids=F.pad(active.ids, padding, value=PAD),
        lengths=torch.full_like(active.ids[..., 0], length),
        logprob=active.logprob,
        word_logprobs=F.pad(active.word_logprobs, padding),
        scores=config.score(active.logprob, length),
        finished=torch.full_like(exists, finished),
    )
    return clear_rows(hypotheses, ~exists)


def _best(hypotheses: Hypotheses, count: int) -> Hypotheses:
    order = hypotheses.scores.argsort(stable=True, descending=True)
    return reorder_state(hypotheses, order[:, :count])
