"""Several decoders that speak as one. Knows ids and their probabilities, never words or pixels.

It is built from trained decoders and has no config: nothing here is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from captioning.models.decoders.base import Decoder
from captioning.tensors import Features, SequenceOutput, StepOutput

Average = Literal["probabilities", "log_probabilities"]


class Memory(NamedTuple):
    members: tuple[Any, ...]  # each member's own


class State(NamedTuple):
    members: tuple[Any, ...]  # each member's own


class Ensemble(Decoder):
    """The average of what its members hold likely, of whatever kinds and sizes, over one vocabulary.

    Each member keeps its own memory and carry, and may have its own features of the images. Members whose
    weights w_m sum to 1 speak by the mean of their probabilities, sum_m w_m p_m (the mixture), or by
    that of their log-probabilities, normalised: prod_m p_m^w_m (the product of experts, Hinton 2002, which
    avoids a word that any member holds unlikely).

    `Step.hidden` holds the averaged log-probabilities (B, K, V), and `logits` has nothing to add: a search
    asks for them at every step anyway. An ensemble of one is its member, to the last bit.
    """

    def __init__(
        self,
        members: Sequence[Decoder],
        *,
        weights: Sequence[float] | None = None,
        average: Average = "probabilities",
    ):
        """`weights`: one a member, above 0, in any unit; None: all alike."""
        super().__init__()
        weights = weights or [1.0] * len(members)
        if not members or len(weights) != len(members) or not all(0 < each < math.inf for each in weights):
            raise ValueError(f"a weight above 0 for each member, got {weights} for {len(members)} members")
        sizes = {member.vocabulary_size for member in members}
        if len(sizes) > 1:
            raise ValueError(f"the members' vocabularies differ: {sorted(sizes)} words")
        self.vocabulary_size = sizes.pop()
        self.members, self.average = nn.ModuleList(members), average
        self.parallel = any(member.parallel for member in members)
        self.weights = tuple(each / sum(weights) for each in weights)

    @property
    def _members(self) -> Iterable[Decoder]:
        return cast(Iterable[Decoder], self.members)

    def encode_memory(self, features: Features | Sequence[Features]) -> Memory:
        """`features`: the same for all members, or one for each."""
        each = [features] * len(self.members) if isinstance(features, Features) else features
        return Memory(
            tuple(member.encode_memory(own) for member, own in zip(self._members, each, strict=True))
        )

    def init_state(self, memory: Memory, num_sequences: int) -> State:
        return State(
            tuple(
                member.init_state(own, num_sequences)
                for member, own in zip(self._members, memory.members, strict=True)
            )
        )

    def step(self, words: Tensor, state: State, memory: Memory) -> tuple[StepOutput, State]:
        steps, carries = [], []
        for member, own, remembered in zip(self._members, state.members, memory.members, strict=True):
            step, own = member.step(words, own, remembered)
            steps.append(step)
            carries.append(own)
        hidden, attention = self._averaged(steps)
        return StepOutput(hidden=hidden, attention=attention), State(tuple(carries))

    def forward(
        self, words: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        hidden, attention = self._averaged(
            [
                member(words, remembered, batch_sizes)
                for member, remembered in zip(self._members, memory.members, strict=True)
            ]
        )
        return SequenceOutput(hidden=hidden, attention=attention)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden.clone()  # the caller may write into it

    def _averaged(self, steps: Sequence[StepOutput | SequenceOutput]) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (..., V), and the mean attention (..., N) where all members have it over N regions."""
        logits = [member.logits(step.hidden) for member, step in zip(self._members, steps, strict=True)]
        shown = [step.attention for step in steps if step.attention is not None]
        alike = len(shown) == len(steps) and len({each.shape[-1] for each in shown}) == 1
        attention = (
            sum(weight * each for weight, each in zip(self.weights, shown, strict=True)) if alike else None
        )
        return self._mixed(logits), cast("Tensor | None", attention)

    def _mixed(self, logits: Sequence[Tensor]) -> Tensor:
        if len(logits) == 1:  # nothing to average; normalising would only round
            return logits[0]
        dtype = torch.promote_types(logits[0].dtype, torch.float32)
        each = [torch.log_softmax(part, -1, dtype=dtype) for part in logits]
        if self.average == "log_probabilities":
            total = cast(
                Tensor, sum(weight * logprob for weight, logprob in zip(self.weights, each, strict=True))
            )
            return torch.log_softmax(total, -1)
        mixed = each[0] + math.log(self.weights[0])
        for weight, logprob in zip(self.weights[1:], each[1:], strict=True):
            mixed = torch.logaddexp(mixed, logprob + math.log(weight))
        return mixed
