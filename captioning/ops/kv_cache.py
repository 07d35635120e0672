"""Keys and values of the words read, each kept once however many hypotheses share it. Knows no weights, no words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

SPARE = 24
"""Words a sequence that room is made for at a time: most captions are done with that, and nothing is copied."""


class KVBuffer:
    """Keys and values of all layers with space behind them, for words to be added without copying those before.

    The one thing here that changes: words are written behind the `filled` first, which no one has seen yet.
    Whoever holds the first ones only keeps what they are. With gradients nothing is written in place.
    """

    def __init__(self, held: list[Tensor], filled: int):
        self.held, self.filled = held, filled  # a layer's keys and values: (2, B, capacity, H)

    def with_more(self, kept: int, count: int) -> KVBuffer:
        """A room that holds the first `kept` words of this one, `count` more being claimed behind them."""
        if torch.is_grad_enabled():
            return KVBuffer(list(self.held), kept + count)
        taken = self.filled != kept  # another continuation of these words has claimed the place behind them
        if taken or kept + count > self.held[0].shape[2]:
            held = (each[:, :, :kept] for each in self.held)
            return KVBuffer(_spacious(held, count=count), kept + count)
        self.filled = kept + count
        return self


class KVCache(NamedTuple):
    """A key/value cache: the words that an image's K hypotheses have read, as a tree of U words.

    The hypotheses of a trained model's beam have most of their words in common. A cache of K x t words would
    hold these K times and be copied whole whenever the hypotheses are reordered; here only `own` is, and the
    words of hypotheses that died are dropped.
    """

    own: Tensor  # (B, K, t) int64: which of the U words are those of each sequence, in their order
    room: KVBuffer
    kept: int  # U

    def longer(self) -> tuple[KVCache, Tensor]:
        """With one more word a sequence behind the others, yet to be written by `add`.

        Returns:
            the next cache, `own` (B, K, t + 1).
            allowed: (B, 1, K, U + K) bool, a sequence's own words, as attention takes it.
        """
        images, width, _ = self.own.shape
        new = torch.arange(self.kept, self.kept + width, device=self.own.device).expand(images, width)
        own = torch.cat([self.own, new[..., None]], 2)
        allowed = torch.zeros(images, width, self.kept + width, dtype=torch.bool, device=own.device)
        room = self.room.with_more(self.kept, width)
        return KVCache(own, room, self.kept + width), allowed.scatter_(2, own, True)[:, None]

    def add(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new words' (B, K, H) and give those of all U + K words, (B, U + K, H)."""
        before, held = self.kept - keys.shape[1], self.room.held
        if torch.is_grad_enabled():  # an in-place write would change what earlier words' gradients need
            held[layer] = torch.cat([held[layer][:, :, :before], torch.stack([keys, values])], 2)
        else:
            held[layer][0, :, before : self.kept], held[layer][1, :, before : self.kept] = keys, values
        return held[layer][0, :, : self.kept], held[layer][1, :, : self.kept]

    def tensors(self) -> list[Tensor]:
        """What is held, without the room that is empty yet."""
        return [self.own, *(each[:, :, : self.kept] for each in self.room.held)]

    def reorder(self, parents: Tensor) -> KVCache:
        """As `base.reorder_state`, without the words that no sequence has any more."""
        own = self.own.gather(1, parents[..., None].expand(-1, -1, self.own.shape[2]))  # (B, W, t)
        images, kept = len(own), self.kept
        if own.is_meta or not kept:  # how many words are left cannot be known without numbers
            return self._replace(own=own)
        used = torch.zeros(images, kept, dtype=torch.bool, device=own.device)
        used.scatter_(1, own.flatten(1), True)
        most = int(used.sum(1).max())
        if most == kept:
            return self._replace(own=own)
        # the words in use come first and in their order; an image with fewer than `most` keeps some others
        order = used.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        place = used.cumsum(1) - 1
        held = self.room.held
        rows = order + held[0].shape[2] * torch.arange(images, device=own.device)[:, None]
        moved = (
            each.flatten(1, 2).index_select(1, rows.flatten()).unflatten(1, order.shape) for each in held
        )
        room = KVBuffer(_spacious(moved, count=parents.shape[1]), most)
        return KVCache(place.gather(1, own.flatten(1)).view_as(own), room, most)


def _spacious(words: Iterable[Tensor], *, count: int) -> list[Tensor]:
    """Each layer's `words` (2, B, U, H), with space for `SPARE` x `count` more behind them where no gradients are.

    The layers' words are asked for one by one, so that those that are made for this never exist all at once. The
    first word gets no more than its own space: how many sequences there will be, a search tells with the second.
    """
    if torch.is_grad_enabled():
        return list(words)
    held = list[Tensor]()
    for part in words:
        _, images, kept, size = part.shape
        space = part.new_empty(2, images, kept + (SPARE * count if kept else count), size)
        space[:, :, :kept] = part
        held.append(space)
    return held


def no_words(like: Tensor, *, images: int, width: int, size: int, layers: int) -> KVCache:
    """Before the first word; `like` tells type and device."""
    own = torch.empty(images, width, 0, dtype=torch.int64, device=like.device)
    return KVCache(own=own, room=KVBuffer([like.new_empty(2, images, 0, size)] * layers, 0), kept=0)
