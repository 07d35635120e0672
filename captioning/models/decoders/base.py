"""What a decoder is: B images x K sequences, state as argument and result. Knows ids, never words or pixels."""

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
    def longest(self) -> int | None:
        """Most words that the decoder can read, `<start>` included; None: any number."""
        return None

    @abc.abstractmethod
    def build(self, *, channels: int, vocabulary_size: int) -> Decoder:
        """The decoder with new weights, for regions of D = `channels` and V = `vocabulary_size`."""


class Decoder(nn.Module, abc.ABC):
    """Image features and words so far -> scores of the next word. Concrete decoders are final.

    `Memory` and `State` are NamedTuples of tensors (nested ones allowed), each decoder's own. A search
    reorders a carry with `reorder_state`; a memory is never reordered, and nothing in it is copied K times.
    `forward` equals `unroll` of `step`.
    """

    vocabulary_size: int
    embedding: nn.Embedding  # of the words read
    parallel: bool = (
        False  # `forward` needs no `batch_sizes`, reads all words at once; a Carry grows with each
    )

    @abc.abstractmethod
    def encode_memory(self, features: Features) -> Any:
        """What the decoder attends to, computed once per image: a Memory of (B, N, ...) tensors."""

    @abc.abstractmethod
    def init_state(self, memory: Any, num_sequences: int) -> Any:
        """The Carry of (B, num_sequences, ...) tensors before the first word (`<start>`) is read."""

    @abc.abstractmethod
    def step(self, words: Tensor, state: Any, memory: Any) -> tuple[StepOutput, Any]:
        """Read one word a sequence, `words` (B, K) int64; Step of (B, K, ...) and the next Carry."""

    @abc.abstractmethod
    def forward(self, words: Tensor, memory: Any, batch_sizes: Sequence[int] | None = None) -> SequenceOutput:
        """Teacher forced: read `words` (B, K, T) int64; Steps of (B, K, T, ...).

        `batch_sizes` (T numbers, never rising) says that at word t only the first `batch_sizes[t]` sequences of
        each image are wanted; what the others hold there is unspecified. None: all are wanted.
        """

    @abc.abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (..., V), which the caller may write into: call it on the positions that count, no others."""


def reorder_state(state: Nested, parents: Tensor) -> Nested:
    """Carry of (B, K, ...) tensors and `parents` (B, W) int64 -> carry of (B, W, ...) tensors.

    Sequence w of image b goes on from sequence `parents[b, w]` of the same image. A part that knows better
    than to move all that it holds has a `reorder_state` of its own.
    """
    if isinstance(state, Tensor):
        rows = torch.arange(parents.shape[0], device=parents.device)[:, None]
        return state[rows, parents]  # type: ignore[return-value]
    if hasattr(state, "reorder"):
        return state.reorder(parents)
    if isinstance(state, tuple):
        parts = [reorder_state(part, parents) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)  # type: ignore[return-value]
    raise TypeError(f"a state holds tensors and tuples of tensors, found {type(state).__name__}")


def tensors_of(state: Any) -> Iterator[Tensor]:
    """The tensors that a carry holds; a part that is more than them says which by `tensors`."""
    if isinstance(state, Tensor):
        yield state
    elif hasattr(state, "tensors"):
        yield from state.tensors()
    else:
        for part in state:
            yield from tensors_of(part)


def unroll(decoder: Decoder, words: Tensor, memory: Any) -> SequenceOutput:
    """Read `words` (B, K, T) by T calls of `step`; what `forward` must equal."""
    state = decoder.init_state(memory, words.shape[1])
    steps = []
    for word in words.unbind(2):
        out, state = decoder.step(word, state, memory)
        steps.append(out)
    attention = [step.attention for step in steps if step.attention is not None]
    return SequenceOutput(
        hidden=torch.stack([step.hidden for step in steps], dim=2),
        attention=torch.stack(attention, dim=2) if attention else None,
    )
