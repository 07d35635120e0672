"""Keys and values of the words read, each kept once however many hypotheses share it. Knows no weights, no words."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Layer(NamedTuple):
    keys: Tensor  # (B, U, H)
    values: Tensor  # (B, U, H)


class Prefixes(NamedTuple):
    """A key/value cache: the words that an image's K hypotheses have read, as a tree of U words.

    The hypotheses of a beam have most of their words in common. A cache of K x t words would hold these K
    times and be copied whole whenever the hypotheses are reordered; here only `own` is, and the words of
    hypotheses that died are dropped. For a beam of 5 U is near 2 t, where K x t is 5 t.
    """

    own: Tensor  # (B, K, t) int64: which of the U words are those of each sequence, in their order
    layers: tuple[Layer, ...]

    def longer(self) -> tuple[Tensor, Tensor]:
        """With one more word a sequence, to be kept behind the others.

        Returns:
            own: (B, K, t + 1).
            allowed: (B, 1, K, U + K) bool, a sequence's own words, as attention takes it.
        """
        images, width, _ = self.own.shape
        kept = self.layers[0].keys.shape[1]
        new = torch.arange(kept, kept + width, device=self.own.device).expand(images, width)
        own = torch.cat([self.own, new[..., None]], 2)
        allowed = torch.zeros(images, width, kept + width, dtype=torch.bool, device=own.device)
        return own, allowed.scatter_(2, own, True)[:, None]

    def select(self, parents: Tensor) -> Prefixes:
        """As `base.select`, without the words that no sequence has any more."""
        own = self.own.gather(1, parents[..., None].expand(-1, -1, self.own.shape[2]))  # (B, W, t)
        images, kept, _ = self.layers[0].keys.shape
        if own.is_meta or not kept:  # how many words are left cannot be known without numbers
            return self._replace(own=own)
        used = torch.zeros(images, kept, dtype=torch.bool, device=own.device)
        used.scatter_(1, own.flatten(1), True)
        most = int(used.sum(1).max())
        if most == kept:
            return self._replace(own=own)
        # the words in use come first and in their order; an image with fewer than `most` keeps some others
        order = used.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        rows = (order + kept * torch.arange(images, device=own.device)[:, None]).flatten()
        place = used.cumsum(1) - 1
        return Prefixes(
            own=place.gather(1, own.flatten(1)).view_as(own),
            layers=tuple(
                Layer(
                    *(part.flatten(0, 1).index_select(0, rows).unflatten(0, (images, most)) for part in layer)
                )
                for layer in self.layers
            ),
        )


def no_words(like: Tensor, *, images: int, width: int, size: int, layers: int) -> Prefixes:
    """Before the first word; `like` tells type and device."""
    empty = like.new_empty(images, 0, size)
    own = torch.empty(images, width, 0, dtype=torch.int64, device=like.device)
    return Prefixes(own=own, layers=(Layer(keys=empty, values=empty),) * layers)
