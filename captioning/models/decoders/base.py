"""The interface of every decoder: B images x K sequences, with the state as an argument and a result."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from captioning.tensors import Features, SequenceOutput, StepOutput

Nested = TypeVar("Nested")


@dataclass(frozen=True, kw_only=True)
class BaseDecoderConfig(abc.ABC):
    """Settings of a decoder: a frozen dataclass with a literal `kind`, sizes, and `build`."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: str

    @property
    def max_positions(self) -> int | None:
        """Tokens that the decoder can read, `<start>` included; None: any number."""
        return None

    @abc.abstractmethod
    def build(self, *, channels: int, vocabulary_size: int) -> Decoder:
        """The decoder with new weights, for regions of D = `channels` and V = `vocabulary_size`."""


class Decoder(nn.Module, abc.ABC):
    """Predicts the next token from image features and the tokens so far. Concrete decoders are final.

    Each decoder has its own `Memory` and `State`: NamedTuples of tensors, which may be nested. A search reorders the
    state with `reorder_state`; the memory is never reordered and holds nothing K times. `forward` gives the same
    numbers as `unroll`, which calls `step` token by token.
    """

    vocabulary_size: int
    embedding: nn.Embedding  # of the tokens read
    # True: `forward` reads all tokens at once and ignores `batch_sizes`; the state grows with every token
    parallel: bool = False

    @abc.abstractmethod
    def encode_memory(self, features: Features) -> Any:
        """What the decoder attends to, computed once per image: a Memory of (B, N, ...) tensors."""

    @abc.abstractmethod
    def init_state(self, memory: Any, num_sequences: int) -> Any:
        """The State of (B, num_sequences, ...) tensors before the first token (`<start>`) is read."""

    def with_noise(self, memory: Any, noise: Tensor) -> Any:
        """The memory for K sequences that draw the decoder's random variables from `noise`, in either mode.

        The same noise gives the same draws in `step` and in `forward`. Decoders without random variables need none.

        Args:
            noise: (B, K) int64, a state of `ops.noise` for each sequence.
        """
        return memory

    @abc.abstractmethod
    def step(self, ids: Tensor, state: Any, memory: Any) -> tuple[StepOutput, Any]:
        """Read one token per sequence, `ids` (B, K) int64: a StepOutput of (B, K, ...) tensors and the next State."""

    @abc.abstractmethod
    def forward(self, ids: Tensor, memory: Any, batch_sizes: Sequence[int] | None = None) -> SequenceOutput:
        """Read `ids` (B, K, T) int64 with teacher forcing: a SequenceOutput of (B, K, T, ...) tensors.

        Args:
            batch_sizes: T numbers that never rise. At step t only the first `batch_sizes[t]` sequences of each image
                are needed; what the output holds for the others is unspecified. None: all are needed.
        """

    @abc.abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (..., V), which the caller may modify. Call it only on the positions that are needed."""


def reorder_state(state: Nested, parents: Tensor) -> Nested:
    """A state of (B, K, ...) tensors, and `parents` (B, W) int64 -> a state of (B, W, ...) tensors.

    Sequence w of image b continues sequence `parents[b, w]` of the same image. A part of the state that has a
    cheaper way than to index all its tensors implements `reorder(parents)`.
    """
    if isinstance(state, Tensor):
        rows = torch.arange(parents.shape[0], device=parents.device)[:, None]
        return state[rows, parents]  # type: ignore[return-value]
    if hasattr(state, "reorder"):
        return state.reorder(parents)
    if isinstance(state, tuple):
        parts = [reorder_state(part, parents) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)  # type: ignore[return-value]
    raise TypeError(f"a state consists of tensors and tuples of tensors, got {type(state).__name__}")


def tensors_of(state: Any) -> Iterator[Tensor]:
    """All tensors of a state or memory; a part that is not a tuple of tensors lists its own with `tensors()`."""
    if isinstance(state, Tensor):
        yield state
    elif hasattr(state, "tensors"):
        yield from state.tensors()
    else:
        for part in state:
            yield from tensors_of(part)


def unroll(decoder: Decoder, ids: Tensor, memory: Any) -> SequenceOutput:
    """Read `ids` (B, K, T) by T calls of `step`; `forward` must give the same."""
    state = decoder.init_state(memory, ids.shape[1])
    outputs = []
    for step_ids in ids.unbind(2):
        output, state = decoder.step(step_ids, state, memory)
        outputs.append(output)
    attention = [output.attention for output in outputs if output.attention is not None]
    return SequenceOutput(
        hidden=torch.stack([output.hidden for output in outputs], dim=2),
        attention=torch.stack(attention, dim=2) if attention else None,
    )
