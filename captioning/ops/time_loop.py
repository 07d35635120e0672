"""The loop over a caption's words that recurrent decoders share. Knows which sequences still run, no cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioning.tensors import SequenceOutput, StepOutput

State = TypeVar("State")
Product = Callable[[Tensor], Tensor]
"""(..., in) -> (..., out): a `DeferredGradLinear`."""


class Running(NamedTuple):
    """Which words of (B, K, T) are read: at word t those of the first `counts[t]` sequences of each image."""

    images: int
    width: int  # K
    counts: tuple[int, ...]  # T numbers

    def gathered(self, words: Tensor) -> Tensor:
        """(B, K, T, ...) -> (M, ...): the words that are read, those at t = 0 first."""
        return torch.cat([words[:, :count, t].flatten(0, 1) for t, count in enumerate(self.counts)])

    def parted(self, each: Tensor) -> list[Tensor]:
        """(M, X) -> T tensors (B, counts[t], X)."""
        parts = each.split([self.images * count for count in self.counts])
        return [part.view(self.images, count, -1) for part, count in zip(parts, self.counts, strict=True)]

    def stacked(self, parts: Sequence[Tensor]) -> Tensor:
        """T tensors (B, counts[t], X) -> (B, K, T, X), zeros where a sequence had ended."""
        return torch.stack([F.pad(part, (0, 0, 0, self.width - part.shape[1])) for part in parts], 2)


def batch_sizes_of(words: Tensor, batch_sizes: Sequence[int] | None) -> Running:
    """What `Decoder.forward` is told about `words` (B, K, T)."""
    images, width, length = words.shape
    return Running(images, width, (width,) * length if batch_sizes is None else tuple(batch_sizes))


def loop(
    batch_sizes: Running,
    said: Tensor,
    state: State,
    cell: Callable[[Tensor, State], tuple[StepOutput, State]],
) -> SequenceOutput:
    """Step through the words that run.

    Args:
        said: (M, X), what all the words say, gathered: computed in one large product.
        carry: before the first word, for K sequences.
        cell: a step, from what one word says (B, k, X) and the carry of k sequences.
    """
    steps = []
    count = batch_sizes.width
    for each in batch_sizes.parted(said):
        if each.shape[1] < count:
            count = each.shape[1]
            state = _first(state, count)
        step, state = cell(each, state)
        steps.append((step.hidden, step.attention))  # the gates are not kept: nothing learns from them
    attention = [each for _, each in steps if each is not None]
    return SequenceOutput(
        hidden=batch_sizes.stacked([hidden for hidden, _ in steps]),
        attention=batch_sizes.stacked(attention) if attention else None,
    )


def _first(state: Any, count: int) -> Any:
    """The first `count` sequences of each image."""
    if isinstance(state, Tensor):
        return state[:, :count]
    parts = [_first(part, count) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def read(
    words: Tensor, embedding: nn.Embedding, dropout: nn.Dropout, gates: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """What (B, K) words are, (B, K, E), and what they say, `gates` of it, (B, K, X)."""
    if dropout.training or words.device.type != "cpu":
        embedded = dropout(embedding(words))
        return embedded, gates(embedded)
    # hypotheses of many images read the same few words; each is multiplied once
    distinct, place = words.unique(return_inverse=True)
    embedded = embedding(distinct)
    return embedded[place], gates(embedded)[place]


class Reader(Protocol):
    """A decoder whose step needs of a word no more than what it says to the gates."""

    embedding: nn.Embedding
    dropout: nn.Dropout
    word_gates: nn.Linear

    def init_state(self, memory: Any, num_sequences: int) -> Any: ...

    def products(self) -> Any:
        """The products of its step, for use in a loop."""

    def cell_step(self, said: Tensor, state: Any, memory: Any, products: Any) -> tuple[StepOutput, Any]:
        """One step for what words (B, K) say to the gates, (B, K, X)."""


def read_word(decoder: Reader, words: Tensor, state: Any, memory: Any) -> tuple[StepOutput, Any]:
    """`Decoder.step` of a `Reader`."""
    _, said = read(words, decoder.embedding, decoder.dropout, decoder.word_gates)
    return decoder.cell_step(said, state, memory, decoder.products())


def read_words(
    decoder: Reader, words: Tensor, memory: Any, batch_sizes: Sequence[int] | None
) -> SequenceOutput:
    """`Decoder.forward` of a `Reader`: what all words say in one large product, then the loop."""
    runs, products = batch_sizes_of(words, batch_sizes), decoder.products()
    return loop(
        runs,
        decoder.word_gates(decoder.dropout(decoder.embedding(runs.gathered(words)))),
        decoder.init_state(memory, runs.width),
        lambda said, state: decoder.cell_step(said, state, memory, products),
    )
