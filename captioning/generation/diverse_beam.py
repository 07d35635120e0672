"""Diverse beam search: groups of beams that penalise each other's words."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from captioning.generation.base import BeamSearchConfig
from captioning.generation.hypotheses import advance_beams, finalize_beams, init_beams
from captioning.generation.prefill import Prefill
from captioning.generation.processors import process_logits
from captioning.generation.scores import IMPOSSIBLE, Candidates, best, clear_rows, concat, rank, trim
from captioning.models.decoders.base import reorder_state
from captioning.tensors import Hypotheses


@dataclass(frozen=True, kw_only=True)
class DiverseBeamConfig(BeamSearchConfig):
    """`groups` beams of `width / groups` active hypotheses each.

    `patience` applies to each group. The best caption of every group is returned before the second best of
    any, up to `n_best`, ranked by score.

    Attributes:
        diversity: subtracted from a word's log-probability for each active hypothesis of an earlier group that
            has the word at the same position (Hamming diversity).
    """

    kind: Literal["diverse_beam"] = "diverse_beam"
    width: Annotated[int, Field(ge=1, le=10_000)] = 6
    groups: Annotated[int, Field(ge=1)] = 3
    diversity: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.groups:
            raise ValueError(f"width must be a multiple of groups, got {self.width} and {self.groups}")

    @property
    def num_initial(self) -> int:
        return self.groups

    def with_n_best(self, n_best: int) -> DiverseBeamConfig:
        width = self.groups * math.ceil(max(self.width, n_best) / self.groups)
        return replace(self, n_best=n_best, width=width)

    def run(self, prefill: Prefill) -> Hypotheses:
        return diverse_beam_search(prefill, self)


def diverse_beam_search(prefill: Prefill, config: DiverseBeamConfig) -> Hypotheses:
    """The best captions of each image, R = `n_best`, no two equal. See `captioning.generation.search`.

    Diverse beam search (Vijayakumar et al. 2018, algorithm 1). The decoder processes the hypotheses of all
    groups at once; only the choice of words goes group by group. The penalty affects the choice but no
    log-probability, so hypotheses are compared without the penalties of earlier steps. Only hypotheses that go on
    count: `<end>` is never penalised, and a group that is done (see `advance_beams`) penalises no other group any
    more. Differs: common implementations also count hypotheses that end at this position.
    """
    decoder, memory, processors, state, last_ids, ids, word_logprobs, _ = prefill
    images, groups, width = len(ids), config.groups, config.width // config.groups
    group_config = replace(config, width=width, groups=1, n_best=min(width, config.n_best))
    # each group of each image is a beam search of its own
    beams = init_beams(ids.flatten(0, 1)[:, None], word_logprobs.flatten(0, 1)[:, None], group_config)
    group_index = torch.arange(groups, device=ids.device)[:, None]
    for length in range(ids.shape[-1] + 1, config.max_length + 1):
        step, state = decoder.step(last_ids, state, memory)
        active = beams.active
        per_group = active.logprob.shape[1]  # hypotheses of a group
        scores = process_logits(
            decoder.logits(step.hidden), active.ids.reshape(*last_ids.shape, -1), processors
        )
        candidates = _group_candidates(
            scores.unflatten(1, (groups, per_group)),
            active.logprob.to(scores.dtype).reshape(images, groups, per_group),
            width,
            config.diversity,
            end=processors.end,
        )
        del scores  # as in `beam_search`
        beams, chosen = advance_beams(beams, candidates, group_config, end=processors.end)
        if length == config.max_length or (beams.active.logprob == IMPOSSIBLE).all():
            break
        parents = (chosen.parents.reshape(images, groups, -1) + group_index * per_group).flatten(1)
        state, last_ids = reorder_state(state, parents), chosen.ids.reshape(images, -1)
    return trim(_merge_groups(finalize_beams(beams, group_config), groups, config.n_best))


def _group_candidates(
    scores: Tensor, logprob: Tensor, width: int, diversity: float, *, end: int
) -> Candidates:
    """The candidates of each group, (B x G, C), in the order of its choice.

    Args:
        scores: (B, G, W, V).
        logprob: (B, G, W).
        width: hypotheses of a group that go on, for whose words later groups are penalised.
    """
    counts = torch.zeros_like(
        scores[:, 0, :1]
    )  # (B, 1, V): active hypotheses of earlier groups with the word
    groups = []
    for group in range(scores.shape[1]):
        group_scores, before = scores[:, group], logprob[:, group]
        top = best(group_scores - diversity * counts if group else group_scores, before, 2 * width)
        word_logprobs = group_scores.flatten(1).gather(1, top.parents * group_scores.shape[-1] + top.ids)
        top = top._replace(word_logprobs=word_logprobs, logprob=before.gather(1, top.parents) + word_logprobs)
        active = (top.ids != end) & (top.logprob != IMPOSSIBLE)
        active &= active.cumsum(1) <= width  # as in `advance_beams`
        counts[:, 0].scatter_add_(1, top.ids, active.to(counts.dtype))
        groups.append(top)
    return Candidates(*(torch.stack(fields, 1).flatten(0, 1) for fields in zip(*groups, strict=True)))


def _merge_groups(hypotheses: Hypotheses, groups: int, count: int) -> Hypotheses:
    """(B x G, R) of the groups -> (B, `count`): the best of each group first, without duplicates."""
    places = [
        rank(Hypotheses(*(field.unflatten(0, (-1, groups))[:, :, place] for field in hypotheses)))
        for place in range(hypotheses.scores.shape[1])
    ]
    merged = concat(*places)
    same = (merged.ids[:, :, None] == merged.ids[:, None]).all(-1)  # (B, R, R)
    merged = clear_rows(merged, same.tril(-1).any(-1))
    group = torch.where(merged.finished, 0, 1) + (merged.scores == IMPOSSIBLE).int()
    return rank(reorder_state(merged, group.argsort(stable=True)[:, :count]))
