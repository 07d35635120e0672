"""Beam search over any Decoder. Knows ids, never words or pixels."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field
from torch import Tensor

from captioning.generation.constraints import dynamic_beam_allocation
from captioning.generation.hypotheses import Beams, Ranking, advance_beams, finalize_beams, init_beams
from captioning.generation.opening import prefill
from captioning.generation.processors import Ranked, RuleIds, next_scores
from captioning.generation.scores import IMPOSSIBLE, Candidates, best, trimmed
from captioning.models.decoders.base import Decoder, reorder_state
from captioning.tensors import Hypotheses


@dataclass(frozen=True, kw_only=True)
class BeamConfig(Ranked):
    """`width` live hypotheses an image; the best `n_best` captions are returned.

    Attributes:
        patience: an image is done when `width` x `patience` hypotheses have ended (Kasai et al. 2022; 1 is
            what most programs do); null: only when no live hypothesis can rank among the best `n_best` any
            more, or at `max_length`.
    """

    kind: Literal["beam"] = "beam"
    width: Annotated[int, Field(ge=1)] = 5
    n_best: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_best <= self.width:
            raise ValueError(f"n_best must be from 1 to width, got {self.n_best} and {self.width}")

    @property
    def ranking(self) -> Ranking:
        return Ranking(self.width, self.n_best, self.max_length, self.length_rule, self.alpha, self.patience)

    @property
    def live(self) -> int:
        """Sequences an image, at most words."""
        return self.width

    def finding(self, count: int) -> BeamConfig:
        """A search for `count` captions an image, wider where that is needed."""
        return replace(self, n_best=count, width=max(self.width, count))

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
        return beam(decoder, memory, self, start=start, end=end, suppress_ids=suppress_ids, ids=ids)


class Turn(NamedTuple):
    """One word of a beam search, for who wants to see how it went."""

    ways: Candidates  # (B, C) to go on, in the order in which they were wanted
    chosen: Candidates  # (B, W) those of them that live on, also where the image is done: `logprob` says which exist
    beams: Beams  # behind the word


def beam(
    decoder: Decoder,
    memory: Any,
    config: BeamConfig,
    *,
    start: int,
    end: int,
    suppress_ids: Collection[int],
    ids: RuleIds | None = None,
    watch: Callable[[Turn], None] | None = None,
) -> Hypotheses:
    """The best captions of each image, R = `n_best`, by a beam search. See `captioning.generation.search`.

    At each word the 2 x width best ways to go on from the live hypotheses are ranked by log-probability (in
    banks, where words are forced); what becomes of them says `live.advance_beams`. Unfinished hypotheses are returned
    only in places for which there are not enough finished ones, behind these. `watch` is told each word.
    """
    ranking = config.ranking
    opening = prefill(
        decoder,
        memory,
        config,
        width=1,
        live=config.width,
        start=start,
        end=end,
        suppress_ids=suppress_ids,
        ids=ids,
    )
    decoder, limits, state, reading, words, word_logprobs = opening
    beams = init_beams(words, word_logprobs, ranking)
    for length in range(words.shape[-1] + 1, config.max_length + 1):
        step, state = decoder.step(reading, state, memory)
        live = beams.live
        scores = next_scores(decoder.logits(step.hidden), live.ids, limits)
        logprob = live.logprob.to(scores.dtype)
        if limits.forced:
            ways = dynamic_beam_allocation(scores, live.ids, logprob, config.width, limits.forced)
        else:
            ways = best(scores, logprob, 2 * config.width)
        del scores  # as large as all else together: not to be there when the next ones are
        beams, top = advance_beams(beams, ways, ranking, may_end=length > config.min_length, end=end)
        if watch is not None:
            watch(Turn(ways=ways, chosen=top, beams=beams))
        if length == config.max_length or (beams.live.logprob == IMPOSSIBLE).all():
            break
        state, reading = reorder_state(state, top.parents), top.ids
    return trimmed(finalize_beams(beams, ranking))
