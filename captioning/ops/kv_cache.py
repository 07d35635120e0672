"""A key/value cache in which an image's hypotheses share the tokens that they have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

SPARE_STEPS = 24
"""Steps for which memory is allocated at a time: most captions end within them, and nothing is copied."""


class KVBuffer:
    """Keys and values of all layers, allocated with spare room so that new tokens are written without a copy.

    This is the only mutable part of a decoder's state: tokens are written behind the first `length`, which no
    earlier cache refers to. With gradients enabled nothing is written in place.
    """

    def __init__(self, layers: list[Tensor], length: int):
        self.layers = layers  # (2, B, capacity, H) each: keys and values
        self.length = length

    def reserve(self, length: int, count: int) -> KVBuffer:
        """A buffer with the first `length` tokens of this one, and `count` more reserved behind them."""
        if torch.is_grad_enabled():
            return KVBuffer(list(self.layers), length + count)
        reserved = self.length != length  # by another continuation of the same tokens
        if reserved or length + count > self.layers[0].shape[2]:
            layers = (layer[:, :, :length] for layer in self.layers)
            return KVBuffer(_with_spare_room(layers, count=count), length + count)
        self.length = length + count
        return self


class KVCache(NamedTuple):
    """The tokens that an image's K hypotheses have read, stored once as a tree of U tokens.

    The hypotheses of a trained model's beam have most of their tokens in common. A cache of K x t tokens would store
    them K times and be copied whole at every reordering; here only `token_index` is copied, and tokens that no
    hypothesis refers to any more are dropped.
    """

    token_index: Tensor  # (B, K, t) int64: which of the U tokens are those of each sequence, in order
    buffer: KVBuffer
    num_tokens: int  # U

    @classmethod
    def empty(cls, like: Tensor, *, images: int, num_sequences: int, size: int, layers: int) -> KVCache:
        """The cache before the first token, with the dtype and device of `like`."""
        index = torch.empty(images, num_sequences, 0, dtype=torch.int64, device=like.device)
        buffer = KVBuffer([like.new_empty(2, images, 0, size)] * layers, 0)
        return cls(token_index=index, buffer=buffer, num_tokens=0)

    @property
    def length(self) -> int:
        """Tokens that each sequence has read: t."""
        return self.token_index.shape[2]

    def extend(self) -> tuple[KVCache, Tensor]:
        """The cache with one more token per sequence, whose keys and values `write` has yet to fill in.

        Returns:
            the new cache, with `token_index` (B, K, t + 1).
            allowed: (B, 1, K, U + K) bool, True for a sequence's own tokens, as attention takes it.
        """
        images, sequences, _ = self.token_index.shape
        total = self.num_tokens + sequences
        new = torch.arange(self.num_tokens, total, device=self.token_index.device).expand(images, sequences)
        index = torch.cat([self.token_index, new[..., None]], 2)
        allowed = torch.zeros(images, sequences, total, dtype=torch.bool, device=index.device)
        buffer = self.buffer.reserve(self.num_tokens, sequences)
        return KVCache(index, buffer, total), allowed.scatter_(2, index, True)[:, None]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values (B, K, H); those of all U tokens, (B, U, H) each."""
        first, layers = self.num_tokens - keys.shape[1], self.buffer.layers
        if torch.is_grad_enabled():  # writing in place would change what earlier tokens' gradients need
            layers[layer] = torch.cat([layers[layer][:, :, :first], torch.stack([keys, values])], 2)
        else:
            layers[layer][0, :, first : self.num_tokens] = keys
            layers[layer][1, :, first : self.num_tokens] = values
        return layers[layer][0, :, : self.num_tokens], layers[layer][1, :, : self.num_tokens]

    def tensors(self) -> list[Tensor]:
        """The tensors in use, without the spare room."""
        return [self.token_index, *(layer[:, :, : self.num_tokens] for layer in self.buffer.layers)]

    def reorder(self, parents: Tensor) -> KVCache:
        """As `reorder_state`, dropping the tokens that no sequence refers to any more."""
        expanded = parents[..., None].expand(-1, -1, self.length)
        index = self.token_index.gather(1, expanded)  # (B, W, t)
        images, num_tokens = len(index), self.num_tokens
        if index.is_meta or not num_tokens:  # without numbers the tokens in use cannot be counted
            return self._replace(token_index=index)
        used = torch.zeros(images, num_tokens, dtype=torch.bool, device=index.device)
        used.scatter_(1, index.flatten(1), True)
        remaining = int(used.sum(1).max())
        if remaining == num_tokens:
            return self._replace(token_index=index)
        # tokens in use come first, in their order; an image with fewer than `remaining` keeps some unused ones
        order = used.byte().argsort(dim=1, descending=True, stable=True)[:, :remaining]
        new_index = (used.cumsum(1) - 1).gather(1, index.flatten(1)).view_as(index)
        layers = self.buffer.layers
        rows = order + layers[0].shape[2] * torch.arange(images, device=index.device)[:, None]
        moved = (
            layer.flatten(1, 2).index_select(1, rows.flatten()).unflatten(1, order.shape) for layer in layers
        )
        buffer = KVBuffer(_with_spare_room(moved, count=parents.shape[1]), remaining)
        return KVCache(new_index, buffer, remaining)


def _with_spare_room(layers: Iterable[Tensor], *, count: int) -> list[Tensor]:
    """Each layer (2, B, U, H) with room for `SPARE_STEPS` x `count` more tokens; unchanged with gradients enabled.

    The layers are taken from a generator one by one, so that copies made for this never exist all at once. For the
    first token only its own room is allocated: the number of sequences is known from the second on.
    """
    if torch.is_grad_enabled():
        return list(layers)
    copies = list[Tensor]()
    for layer in layers:
        _, images, length, size = layer.shape
        copy = layer.new_empty(2, images, length + (SPARE_STEPS * count if length else count), size)
        copy[:, :, :length] = layer
        copies.append(copy)
    return copies
