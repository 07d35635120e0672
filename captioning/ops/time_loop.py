"""The loop over time steps that recurrent decoders share: token embedding, teacher forcing, single steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioning.tensors import SequenceOutput, StepOutput

State = TypeVar("State")
Linear = Callable[[Tensor], Tensor]
"""(..., in) -> (..., out), such as a `DeferredGradLinear`."""
RecurrentStep = Callable[[Tensor, Any, Any, Any], tuple[StepOutput, Any]]
"""`RecurrentDecoder.recurrent_step`."""


class StepLayout(NamedTuple):
    """Which ids of (B, K, T) are read: at step t those of the first `batch_sizes[t]` sequences of each image."""

    num_images: int
    num_sequences: int  # K
    batch_sizes: tuple[int, ...]  # T numbers, never rising

    @classmethod
    def of(cls, ids: Tensor, batch_sizes: Sequence[int] | None) -> StepLayout:
        """From the arguments of `Decoder.forward`."""
        images, sequences, length = ids.shape
        sizes = (sequences,) * length if batch_sizes is None else tuple(batch_sizes)
        return cls(images, sequences, sizes)

    def pack(self, x: Tensor) -> Tensor:
        """(B, K, T, ...) -> (M, ...): the M positions that are read, those of t = 0 first."""
        return torch.cat([x[:, :size, t].flatten(0, 1) for t, size in enumerate(self.batch_sizes)])

    def split(self, packed: Tensor) -> list[Tensor]:
        """(M, X) -> T tensors (B, batch_sizes[t], X)."""
        steps = packed.split([self.num_images * size for size in self.batch_sizes])
        return [x.view(self.num_images, size, -1) for x, size in zip(steps, self.batch_sizes, strict=True)]

    def stack(self, steps: Sequence[Tensor]) -> Tensor:
        """T tensors (B, batch_sizes[t], X) -> (B, K, T, X), zeros where a sequence had ended."""
        return torch.stack([F.pad(x, (0, 0, 0, self.num_sequences - x.shape[1])) for x in steps], 2)


def run_time_loop(
    layout: StepLayout,
    input_gates: Tensor,
    state: State,
    step: Callable[[Tensor, State], tuple[StepOutput, State]],
) -> SequenceOutput:
    """Call `step` for every time step, on the sequences that have not ended.

    Args:
        input_gates: (M, X), packed: the inputs' share of the gates, computed in one large product.
        state: of K sequences, before the first step.
        step: input gates (B, k, X) and the state of k sequences -> output and next state.
    """
    outputs = []
    active = layout.num_sequences
    for step_gates in layout.split(input_gates):
        if step_gates.shape[1] < active:
            active = step_gates.shape[1]
            state = _first_sequences(state, active)
        output, state = step(step_gates, state)
        outputs.append((output.hidden, output.attention))  # not the gates: no loss reads them
    attention = [weights for _, weights in outputs if weights is not None]
    return SequenceOutput(
        hidden=layout.stack([hidden for hidden, _ in outputs]),
        attention=layout.stack(attention) if attention else None,
    )


def _first_sequences(state: Any, count: int) -> Any:
    """The state of the first `count` sequences of each image."""
    if isinstance(state, Tensor):
        return state[:, :count]
    parts = [_first_sequences(part, count) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


class RecurrentDecoder(Protocol):
    """What `decode_step` and `decode_sequence` need of a decoder."""

    embedding: nn.Embedding
    dropout: nn.Dropout
    input_proj: nn.Linear  # token embedding -> gates

    def init_state(self, memory: Any, num_sequences: int) -> Any: ...

    def loop_weights(self) -> Any:
        """The linear layers of a step, as `DeferredGradLinear`s for one pass through the loop."""

    def recurrent_step(
        self, input_gates: Tensor, state: Any, memory: Any, weights: Any
    ) -> tuple[StepOutput, Any]:
        """Attention and recurrent update of one time step; `input_gates` (B, K, X) are those of the tokens read."""


def decode_step(
    decoder: RecurrentDecoder, ids: Tensor, state: Any, memory: Any, *, append_embedding: bool = False
) -> tuple[StepOutput, Any]:
    """`Decoder.step` of a recurrent decoder.

    Args:
        append_embedding: append the token embedding to `hidden`, for decoders whose output layer reads it.
    """
    embedded, input_gates = _embed(decoder, ids)
    output, state = decoder.recurrent_step(input_gates, state, memory, decoder.loop_weights())
    if append_embedding:
        output = output._replace(hidden=torch.cat([output.hidden, embedded], -1))
    return output, state


def _embed(decoder: RecurrentDecoder, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The embeddings (B, K, E) of `ids` (B, K) and their share of the gates (B, K, X)."""
    if decoder.dropout.training or ids.device.type != "cpu":
        embedded = decoder.dropout(decoder.embedding(ids))
        return embedded, decoder.input_proj(embedded)
    # in a search on a CPU many hypotheses read the same few tokens; each token is multiplied once
    distinct, inverse = ids.unique(return_inverse=True)
    embedded = decoder.embedding(distinct)
    return embedded[inverse], decoder.input_proj(embedded)[inverse]


def decode_sequence(
    decoder: RecurrentDecoder,
    ids: Tensor,
    memory: Any,
    batch_sizes: Sequence[int] | None,
    *,
    append_embedding: bool = False,
    recurrent_step: RecurrentStep | None = None,
) -> SequenceOutput:
    """`Decoder.forward` of a recurrent decoder: the input gates of all tokens in one product, then the loop.

    Args:
        append_embedding: as for `decode_step`.
        recurrent_step: called in place of the decoder's own.
    """
    layout, weights = StepLayout.of(ids, batch_sizes), decoder.loop_weights()
    step = recurrent_step or decoder.recurrent_step
    embedded = decoder.dropout(decoder.embedding(layout.pack(ids)))
    output = run_time_loop(
        layout,
        decoder.input_proj(embedded),
        decoder.init_state(memory, layout.num_sequences),
        lambda input_gates, state: step(input_gates, state, memory, weights),
    )
    if append_embedding:
        embedded = layout.stack(layout.split(embedded))
        output = output._replace(hidden=torch.cat([output.hidden, embedded], -1))
    return output
