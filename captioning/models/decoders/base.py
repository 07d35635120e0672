"""What a decoder is: B images x K sequences, state as argument and result. Knows ids, never words or pixels."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from captioning.tensors import Features, Step, Steps

Nested = TypeVar("Nested")


class Decoder(nn.Module, abc.ABC):
    """Image features and words so far -> scores of the next word. Concrete decoders are final.

    `Memory` and `Carry` are NamedTuples of tensors (nested ones allowed), each decoder's own. A search
    reorders a carry with `select`; a memory is never reordered, and nothing in it is copied K times.
    `forward` equals `unroll` of `step`.
    """

    vocabulary_size: int
    embedding: nn.Embedding  # of the words read
    parallel: bool = False  # `forward` needs no `running`, reads all words at once; a Carry grows with each

    @abc.abstractmethod
    def remember(self, features: Features) -> Any:
        """What the decoder attends to, computed once per image: a Memory of (B, N, ...) tensors."""

    @abc.abstractmethod
    def start(self, memory: Any, width: int) -> Any:
        """The Carry of (B, width, ...) tensors before the first word (`<start>`) is read."""

    @abc.abstractmethod
    def step(self, words: Tensor, carry: Any, memory: Any) -> tuple[Step, Any]:
        """Read one word a sequence, `words` (B, K) int64; Step of (B, K, ...) and the next Carry."""

    @abc.abstractmethod
    def forward(self, words: Tensor, memory: Any, running: Sequence[int] | None = None) -> Steps:
        """Teacher forced: read `words` (B, K, T) int64; Steps of (B, K, T, ...).

        `running` (T numbers, never rising) says that at word t only the first `running[t]` sequences of
        each image are wanted; what the others hold there is unspecified. None: all are wanted.
        """

    @abc.abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (..., V), which the caller may write into: call it on the positions that count, no others."""


def select(carry: Nested, parents: Tensor) -> Nested:
    """Carry of (B, K, ...) tensors and `parents` (B, W) int64 -> carry of (B, W, ...) tensors.

    Sequence w of image b goes on from sequence `parents[b, w]` of the same image. A part that knows better
    than to move all that it holds has a `select` of its own.
    """
    if isinstance(carry, Tensor):
        rows = torch.arange(parents.shape[0], device=parents.device)[:, None]
        return carry[rows, parents]  # type: ignore[return-value]
    if hasattr(carry, "select"):
        return carry.select(parents)
    if isinstance(carry, tuple):
        parts = [select(part, parents) for part in carry]
        return type(carry)(*parts) if hasattr(carry, "_fields") else tuple(parts)  # type: ignore[return-value]
    raise TypeError(f"a carry holds tensors and tuples of them, found {type(carry).__name__}")


def tensors_of(carry: Any) -> Iterator[Tensor]:
    """The tensors that a carry holds; a part that is more than them says which by `tensors`."""
    if isinstance(carry, Tensor):
        yield carry
    elif hasattr(carry, "tensors"):
        yield from carry.tensors()
    else:
        for part in carry:
            yield from tensors_of(part)


def unroll(decoder: Decoder, words: Tensor, memory: Any) -> Steps:
    """Read `words` (B, K, T) by T calls of `step`; what `forward` must equal."""
    carry = decoder.start(memory, words.shape[1])
    steps = []
    for word in words.unbind(2):
        out, carry = decoder.step(word, carry, memory)
        steps.append(out)
    attention = [step.attention for step in steps if step.attention is not None]
    return Steps(
        hidden=torch.stack([step.hidden for step in steps], dim=2),
        attention=torch.stack(attention, dim=2) if attention else None,
    )
