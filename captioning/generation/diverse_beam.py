"""Beams that keep away from one another's words, for any Decoder. Knows ids, never words or pixels."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from captioning.generation.hypotheses import Ranking, advance_beams, finalize_beams, init_beams, joined
from captioning.generation.opening import prefill
from captioning.generation.processors import Ranked, RuleIds, next_scores
from captioning.generation.scores import IMPOSSIBLE, Candidates, best, emptied, ranked, trimmed
from captioning.models.decoders.base import Decoder, reorder_state
from captioning.tensors import Hypotheses


@dataclass(frozen=True, kw_only=True)
class DiverseBeamConfig(Ranked):
    """`groups` beams of `width` / `groups` live hypotheses each.

    Attributes:
        diversity: taken from a word's log-probability for each time that an earlier group says it at the same
            place (Hamming diversity), when the group chooses.
        n_best: captions returned: the best of each group come before the second best of any; ranked by score.
        patience: of each group, see `BeamConfig`.
    """

    kind: Literal["diverse_beam"] = "diverse_beam"
    width: Annotated[int, Field(ge=1)] = 6
    groups: Annotated[int, Field(ge=1)] = 3
    diversity: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    n_best: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_best <= self.width:
            raise ValueError(f"n_best must be from 1 to width, got {self.n_best} and {self.width}")
        if self.width % self.groups:
            raise ValueError(f"width must be a multiple of groups, got {self.width} and {self.groups}")

    @property
    def live(self) -> int:
        """Sequences an image, at most words."""
        return self.width

    def finding(self, count: int) -> DiverseBeamConfig:
        """A search for `count` captions an image, wider where that is needed."""
        width = self.groups * math.ceil(max(self.width, count) / self.groups)
        return replace(self, n_best=count, width=width)

    def search(
        self,
        decoder: Decoder,
        memory: Any,
        *,
        start: int,
        end: int,
        suppress_ids: Collection[int],
        ids: RuleIds | None = None,
        keys: Tensor | None = None,
    ) -> Hypotheses:
        return diverse_beam(decoder, memory, self, start=start, end=end, suppress_ids=suppress_ids, ids=ids)


def diverse_beam(
    decoder: Decoder,
    memory: Any,
    config: DiverseBeamConfig,
    *,
    start: int,
    end: int,
    suppress_ids: Collection[int],
    ids: RuleIds | None = None,
) -> Hypotheses:
    """The best captions of each image, R = `n_best`, no two the same. See `captioning.generation.search`.

    Diverse beam search (Vijayakumar et al. 2018, algorithm 1). The decoder reads the hypotheses of all groups at
    once; only the choice goes group by group. What is taken for diversity decides the choice and is in no
    log-probability, so hypotheses are also compared without what they lost at earlier words. A group that is
    done (see `live.advance_beams`) keeps no other off any more.
    """
    groups, width = config.groups, config.width // config.groups
    ranking = Ranking(
        width=width,
        n_best=min(width, config.n_best),
        max_length=config.max_length,
        length_rule=config.length_rule,
        alpha=config.alpha,
        patience=config.patience,
    )
    opening = prefill(
        decoder,
        memory,
        config,
        width=groups,
        live=config.width,
        start=start,
        end=end,
        suppress_ids=suppress_ids,
        ids=ids,
    )
    decoder, limits, state, reading, words, word_logprobs = opening
    images = len(reading)
    # each group of each image is a beam search of its own
    beams = init_beams(words.flatten(0, 1)[:, None], word_logprobs.flatten(0, 1)[:, None], ranking)
    first = torch.arange(groups, device=reading.device)[:, None]
    for length in range(words.shape[-1] + 1, config.max_length + 1):
        step, state = decoder.step(reading, state, memory)
        live = beams.live
        each = live.logprob.shape[1]  # hypotheses of a group
        scores = next_scores(decoder.logits(step.hidden), live.ids.reshape(*reading.shape, -1), limits)
        top = _chosen(
            scores.unflatten(1, (groups, each)),
            live.logprob.to(scores.dtype).reshape(images, groups, each),
            width,
            config.diversity,
        )
        del scores  # as in `beam`
        beams, top = advance_beams(beams, top, ranking, may_end=length > config.min_length, end=end)
        if length == config.max_length or (beams.live.logprob == IMPOSSIBLE).all():
            break
        parents = (top.parents.reshape(images, groups, -1) + first * each).flatten(1)
        state, reading = reorder_state(state, parents), top.ids.reshape(images, -1)
    return trimmed(_spread(finalize_beams(beams, ranking), groups, config.n_best))


def _chosen(scores: Tensor, logprob: Tensor, width: int, diversity: float) -> Candidates:
    """Ways to go on for each group, (B x G, C), in the order of its choice.

    Args:
        scores: (B, G, W, V).
        logprob: (B, G, W).
        width: words that the groups before count with.
    """
    said = torch.zeros_like(scores[:, 0, :1])  # (B, 1, V): how often
    tops = []
    for group in range(scores.shape[1]):
        own, before = scores[:, group], logprob[:, group]
        top = best(own - diversity * said if group else own, before, 2 * width)
        word_logprobs = own.flatten(1).gather(1, top.parents * own.shape[-1] + top.ids)
        top = top._replace(word_logprobs=word_logprobs, logprob=before.gather(1, top.parents) + word_logprobs)
        counted = (top.logprob[:, :width] != IMPOSSIBLE).to(said.dtype)
        said[:, 0].scatter_add_(1, top.ids[:, :width], counted)
        tops.append(top)
    return Candidates(*(torch.stack(parts, 1).flatten(0, 1) for parts in zip(*tops, strict=True)))


def _spread(found: Hypotheses, groups: int, count: int) -> Hypotheses:
    """(B x G, R) of the groups -> (B, `count`): the best of each first, a caption that comes again left out."""
    places = [
        ranked(Hypotheses(*(part.unflatten(0, (-1, groups))[:, :, place] for part in found)))
        for place in range(found.scores.shape[1])
    ]
    together = places[0]
    for more in places[1:]:
        together = joined(together, more)
    same = (together.ids[:, :, None] == together.ids[:, None]).all(-1)  # (B, R, R)
    together = emptied(together, same.tril(-1).any(-1))
    rank = torch.where(together.finished, 0, 1) + (together.scores == IMPOSSIBLE).int()
    return ranked(reorder_state(together, rank.argsort(stable=True)[:, :count]))
