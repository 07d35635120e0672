"""Recurrent cells: LSTM, GRU and RNN, without the matrix products of inputs and hidden state."""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from torch import Tensor, nn

from captioning.tensors import Gates

CellState = tuple[Tensor, ...]
"""The hidden state (B, K, H) first; in an LSTM then the cell (B, K, H)."""


class Cell(nn.Module, abc.ABC):
    """One update of a recurrent cell. The decoder computes the products, outside the time loop where it can."""

    num_gates: ClassVar[int]  # products of size H that inputs and hidden state contribute
    num_states: ClassVar[int]  # tensors of a CellState

    @abc.abstractmethod
    def forward(self, input_gates: Tensor, hidden_gates: Tensor, state: CellState) -> tuple[CellState, Gates]:
        """The next state, and the gates that led to it.

        Args:
            input_gates: (B, K, num_gates x H), the product of the inputs, with the biases.
            hidden_gates: (B, K, num_gates x H), the product of the hidden state, without biases.
            state: before the update.
        """

    @abc.abstractmethod
    def init_bias(self, bias: Tensor, *, forget: float) -> None:
        """Fill the input gates' bias (num_gates x H,): `forget` for the gate that keeps the state, 0 elsewhere."""


class LSTM(Cell):
    """Hochreiter and Schmidhuber 1997 with forget gates (Gers et al. 2000); gates in the order of `torch.nn.LSTM`.

    i, f, g, o = input_gates + hidden_gates;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')
    """

    num_gates, num_states = 4, 2

    def __init__(self, size: int):
        super().__init__()

    def forward(self, input_gates: Tensor, hidden_gates: Tensor, state: CellState) -> tuple[CellState, Gates]:
        input_, forget, candidate, output = (input_gates + hidden_gates).chunk(4, -1)
        input_, forget, output = torch.sigmoid(input_), torch.sigmoid(forget), torch.sigmoid(output)
        candidate = torch.tanh(candidate)
        cell = forget * state[1] + input_ * candidate
        hidden = output * torch.tanh(cell)
        gates = Gates(
            input=input_, forget=forget, candidate=candidate, output=output, cell=cell, hidden=hidden
        )
        return (hidden, cell), gates

    def init_bias(self, bias: Tensor, *, forget: float) -> None:
        nn.init.zeros_(bias)
        nn.init.constant_(bias.chunk(4)[1], forget)


class GRU(Cell):
    """Cho et al. 2014 as in `torch.nn.GRU`: the candidate has a second bias, inside the reset.

    r, z, n = gates;  n = tanh(n_input + sigmoid(r) (n_hidden + b));  h' = (1 - sigmoid(z)) n + sigmoid(z) h
    """

    num_gates, num_states = 3, 1

    def __init__(self, size: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, input_gates: Tensor, hidden_gates: Tensor, state: CellState) -> tuple[CellState, Gates]:
        size = len(self.bias)
        reset, update = torch.sigmoid(input_gates[..., : 2 * size] + hidden_gates[..., : 2 * size]).chunk(
            2, -1
        )
        candidate = torch.tanh(
            torch.addcmul(input_gates[..., 2 * size :], reset, hidden_gates[..., 2 * size :] + self.bias)
        )
        hidden = interpolate(candidate, state[0], update)
        return (hidden,), Gates(reset=reset, update=update, candidate=candidate, hidden=hidden)

    def init_bias(self, bias: Tensor, *, forget: float) -> None:
        nn.init.zeros_(bias)
        nn.init.constant_(bias.chunk(3)[1], forget)


class RNN(Cell):
    """Elman 1990: h' = tanh(input_gates + hidden_gates)."""

    num_gates, num_states = 1, 1

    def __init__(self, size: int):
        super().__init__()

    def forward(self, input_gates: Tensor, hidden_gates: Tensor, state: CellState) -> tuple[CellState, Gates]:
        hidden = torch.tanh(input_gates + hidden_gates)
        return (hidden,), Gates(hidden=hidden)

    def init_bias(self, bias: Tensor, *, forget: float) -> None:
        nn.init.zeros_(bias)


CELLS: dict[str, type[LSTM] | type[GRU] | type[RNN]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
"""By their names in configs; the argument of each is H."""


def interpolate(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """start + weight (end - start): `torch.lerp` of tensors whose dtypes may differ under autocast."""
    dtype = torch.promote_types(torch.promote_types(start.dtype, end.dtype), weight.dtype)
    return torch.lerp(start.to(dtype), end.to(dtype), weight.to(dtype))


def init_gates_orthogonal(weight: Tensor, size: int) -> None:
    """Fill the matrix (gates x H, H) of each gate with an orthogonal one."""
    for gate in weight.split(size):
        nn.init.orthogonal_(gate)


def zero_state(like: Tensor, num_sequences: int, size: int) -> Tensor:
    """(B, num_sequences, size) zeros, with B, dtype and device of `like` (B, ...)."""
    return like.new_zeros(len(like), num_sequences, size)


def expand_state(state: CellState, num_sequences: int) -> CellState:
    """The state (B, 1, H) of an image for all its sequences, (B, num_sequences, H), without copying it."""
    return tuple(part.expand(-1, num_sequences, -1) for part in state)
