"""Beam search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from captioning.generation.base import BeamSearchConfig
from captioning.generation.constraints import dynamic_beam_allocation
from captioning.generation.hypotheses import Beams, advance_beams, finalize_beams, init_beams
from captioning.generation.prefill import Prefill
from captioning.generation.processors import process_logits
from captioning.generation.scores import IMPOSSIBLE, Candidates, best, trim
from captioning.models.decoders.base import reorder_state
from captioning.tensors import Hypotheses


@dataclass(frozen=True, kw_only=True)
class BeamConfig(BeamSearchConfig):
    """Beam search with `width` active hypotheses of each image."""

    kind: Literal["beam"] = "beam"

    def with_n_best(self, n_best: int) -> BeamConfig:
        return replace(self, n_best=n_best, width=max(self.width, n_best))

    def run(self, prefill: Prefill) -> Hypotheses:
        return beam_search(prefill, self)


class BeamStep(NamedTuple):
    """One step of a beam search, for inspection."""

    candidates: Candidates  # (B, C) continuations considered, best first
    chosen: Candidates  # (B, W) the new active hypotheses, also of finished images: see their `logprob`
    beams: Beams  # after the step


def beam_search(
    prefill: Prefill, config: BeamConfig, *, on_step: Callable[[BeamStep], None] | None = None
) -> Hypotheses:
    """The best captions of each image, R = `n_best`. See `captioning.generation.search`.

    Each step ranks the 2 x width most likely continuations of the active hypotheses (in banks, where words
    are forced); `advance_beams` selects among them. Unfinished hypotheses are returned only in places for
    which there are not enough finished ones. `on_step` receives every step.
    """
    decoder, memory, processors, state, last_ids, ids, word_logprobs, _ = prefill
    beams = init_beams(ids, word_logprobs, config)
    for length in range(ids.shape[-1] + 1, config.max_length + 1):
        step, state = decoder.step(last_ids, state, memory)
        active = beams.active
        scores = process_logits(decoder.logits(step.hidden), active.ids, processors)
        logprob = active.logprob.to(scores.dtype)
        if processors.phrases:
            candidates = dynamic_beam_allocation(
                scores, active.ids, logprob, config.width, processors.phrases
            )
        else:
            candidates = best(scores, logprob, 2 * config.width)
        del scores  # as large as everything else together: freed before the next ones are computed
        beams, chosen = advance_beams(beams, candidates, config, end=processors.end)
        if on_step is not None:
            on_step(BeamStep(candidates, chosen, beams))
        if length == config.max_length or (beams.active.logprob == IMPOSSIBLE).all():
            break
        state, last_ids = reorder_state(state, chosen.parents), chosen.ids
    return trim(finalize_beams(beams, config))
