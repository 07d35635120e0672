"""The recurrent cells, from what inputs and state say to the next state. They know no words and no regions."""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from torch import Tensor, nn

from captioning.tensors import Gates

CellState = tuple[Tensor, ...]
"""The hidden state (B, K, H) first; then, in an LSTM, the cell (B, K, H)."""


class Cell(nn.Module, abc.ABC):
    """One word's step. The products are the decoder's: outside the time loop where they can be, many in one."""

    blocks: ClassVar[int]  # parts of H numbers that inputs and state have to say
    states: ClassVar[int]  # tensors of a State

    @abc.abstractmethod
    def forward(self, entered: Tensor, recalled: Tensor, state: CellState) -> tuple[CellState, Gates]:
        """The next state, and how it came about.

        Args:
            entered: (B, K, blocks x H), the products of the inputs, with their biases.
            recalled: (B, K, blocks x H), the product of the hidden state, without.
            state: before the word.
        """

    @abc.abstractmethod
    def initialise(self, bias: Tensor, *, forget: float) -> None:
        """Set the biases (blocks x H,) of the inputs' products as training begins: `forget` where there is a gate
        that keeps the state, 0 elsewhere."""


class LSTM(Cell):
    """Hochreiter and Schmidhuber 1997 with forget gates (Gers et al. 2000); blocks as in `torch.nn.LSTM`.

    i, f, g, o = entered + recalled;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')
    """

    blocks, states = 4, 2

    def __init__(self, size: int):
        super().__init__()

    def forward(self, entered: Tensor, recalled: Tensor, state: CellState) -> tuple[CellState, Gates]:
        enter, forget, candidate, out = (entered + recalled).chunk(4, -1)
        enter, forget, out = torch.sigmoid(enter), torch.sigmoid(forget), torch.sigmoid(out)
        candidate = torch.tanh(candidate)
        cell = forget * state[1] + enter * candidate
        hidden = out * torch.tanh(cell)
        gates = Gates(input=enter, forget=forget, candidate=candidate, output=out, cell=cell, hidden=hidden)
        return (hidden, cell), gates

    def initialise(self, bias: Tensor, *, forget: float) -> None:
        nn.init.zeros_(bias)
        nn.init.constant_(bias.chunk(4)[1], forget)


def between(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """first + share (second - first), all (...): `torch.lerp` of what may differ in precision under autocast."""
    precision = torch.promote_types(torch.promote_types(first.dtype, second.dtype), share.dtype)
    return torch.lerp(first.to(precision), second.to(precision), share.to(precision))


class GRU(Cell):
    """Cho et al. 2014 as `torch.nn.GRU` has it: the state's bias of the candidate stands inside the reset.

    r, z, n = blocks;  n = tanh(n_entered + sigmoid(r) (n_recalled + b));  h' = (1 - sigmoid(z)) n + sigmoid(z) h
    """

    blocks, states = 3, 1

    def __init__(self, size: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, entered: Tensor, recalled: Tensor, state: CellState) -> tuple[CellState, Gates]:
        size = len(self.bias)
        reset, update = torch.sigmoid(entered[..., : 2 * size] + recalled[..., : 2 * size]).chunk(2, -1)
        candidate = torch.tanh(
            torch.addcmul(entered[..., 2 * size :], reset, recalled[..., 2 * size :] + self.bias)
        )
        hidden = between(candidate, state[0], update)
        return (hidden,), Gates(reset=reset, update=update, candidate=candidate, hidden=hidden)

    def initialise(self, bias: Tensor, *, forget: float) -> None:
        nn.init.zeros_(bias)
        nn.init.constant_(bias.chunk(3)[1], forget)


class RNN(Cell):
    """Elman 1990: h' = tanh(entered + recalled)."""

    blocks, states = 1, 1

    def __init__(self, size: int):
        super().__init__()

    def forward(self, entered: Tensor, recalled: Tensor, state: CellState) -> tuple[CellState, Gates]:
        hidden = torch.tanh(entered + recalled)
        return (hidden,), Gates(hidden=hidden)

    def initialise(self, bias: Tensor, *, forget: float) -> None:
        nn.init.zeros_(bias)


CELLS: dict[str, type[LSTM] | type[GRU] | type[RNN]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
"""By the name that configs have for them; each is made with H."""
