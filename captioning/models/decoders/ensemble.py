"""An ensemble of trained decoders, itself a decoder: their averaged probabilities. It has no config."""

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
    members: tuple[Any, ...]  # of every member


class State(NamedTuple):
    members: tuple[Any, ...]  # of every member


class Ensemble(Decoder):
    """The average of the probabilities of decoders of any kind and size that share a vocabulary.

    Every member keeps its own memory and state, and may have its own features of the images. With weights w_m that
    sum to 1 the average is that of the probabilities, sum_m w_m p_m (a mixture), or that of the log-probabilities,
    normalised: prod_m p_m^w_m (a product of experts, Hinton 2002, which avoids a word that any member finds
    improbable).

    `hidden` holds the averaged log-probabilities (B, K, V) and `logits` returns them: a search needs them at every
    step anyway. An ensemble of one gives exactly its member's numbers.
    """

    def __init__(
        self,
        members: Sequence[Decoder],
        *,
        weights: Sequence[float] | None = None,
        average: Average = "probabilities",
    ):
        """`weights`: one per member, above 0, normalised here; None: all equal."""
        super().__init__()
        weights = weights or [1.0] * len(members)
        if not members or len(weights) != len(members) or not all(0 < w < math.inf for w in weights):
            raise ValueError(f"a weight above 0 for each member, got {weights} for {len(members)} members")
        sizes = {member.vocabulary_size for member in members}
        if len(sizes) > 1:
            raise ValueError(f"the members' vocabularies differ: {sorted(sizes)} words")
        self.vocabulary_size = sizes.pop()
        self.members, self.average = nn.ModuleList(members), average
        self.parallel = any(member.parallel for member in members)
        self.weights = tuple(weight / sum(weights) for weight in weights)

    @property
    def _members(self) -> Iterable[Decoder]:
        return cast(Iterable[Decoder], self.members)

    def encode_memory(self, features: Features | Sequence[Features]) -> Memory:
        """`features`: the same for all members, or one for each."""
        if isinstance(features, Features):
            features = [features] * len(self.members)
        pairs = zip(self._members, features, strict=True)
        return Memory(tuple(member.encode_memory(member_features) for member, member_features in pairs))

    def init_state(self, memory: Memory, num_sequences: int) -> State:
        pairs = zip(self._members, memory.members, strict=True)
        return State(
            tuple(member.init_state(member_memory, num_sequences) for member, member_memory in pairs)
        )

    def step(self, ids: Tensor, state: State, memory: Memory) -> tuple[StepOutput, State]:
        triples = zip(self._members, state.members, memory.members, strict=True)
        results = [
            member.step(ids, member_state, member_memory) for member, member_state, member_memory in triples
        ]
        hidden, attention = self._average([output for output, _ in results])
        return StepOutput(hidden=hidden, attention=attention), State(tuple(state for _, state in results))

    def forward(
        self, ids: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        pairs = zip(self._members, memory.members, strict=True)
        outputs = [member(ids, member_memory, batch_sizes) for member, member_memory in pairs]
        hidden, attention = self._average(outputs)
        return SequenceOutput(hidden=hidden, attention=attention)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden.clone()  # the caller may modify it

    def _average(self, outputs: Sequence[StepOutput | SequenceOutput]) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (..., V), and the mean attention (..., N) if all members have it over N regions."""
        pairs = zip(self._members, outputs, strict=True)
        hidden = self._average_logits([member.logits(output.hidden) for member, output in pairs])
        attention = [output.attention for output in outputs if output.attention is not None]
        if len(attention) < len(outputs) or len({weights.shape[-1] for weights in attention}) > 1:
            return hidden, None
        mean = sum(weight * member for weight, member in zip(self.weights, attention, strict=True))
        return hidden, cast(Tensor, mean)

    def _average_logits(self, logits: Sequence[Tensor]) -> Tensor:
        if len(logits) == 1:  # nothing to average, and normalising would round
            return logits[0]
        dtype = torch.promote_types(logits[0].dtype, torch.float32)
        logprobs = [torch.log_softmax(member, -1, dtype=dtype) for member in logits]
        if self.average == "log_probabilities":
            total = sum(weight * member for weight, member in zip(self.weights, logprobs, strict=True))
            return torch.log_softmax(cast(Tensor, total), -1)
        mixture = logprobs[0] + math.log(self.weights[0])
        for weight, member in zip(self.weights[1:], logprobs[1:], strict=True):
            mixture = torch.logaddexp(mixture, member + math.log(weight))
        return mixture
