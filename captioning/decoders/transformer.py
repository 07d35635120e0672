"""A Transformer that reads words and looks at regions. Knows ids and regions, never words or pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from captioning.decoders.attention import multi_head
from captioning.decoders.base import Decoder
from captioning.tensors import Features, Step, Steps

Size = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of the decoder. `encoder_layers` layers of self-attention over the regions come before it."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["transformer"] = "transformer"
    hidden: Size = 512
    feed_forward: Size = 2048
    heads: Size = 8
    layers: Size = 6
    encoder_layers: Annotated[int, Field(ge=0)] = 0
    max_length: Size = 64
    tied: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden must be a multiple of heads, got {self.hidden} and {self.heads}")

    @property
    def longest(self) -> int:
        """Most words that are read, `<start>` among them."""
        return self.max_length

    def build(self, *, channels: int, vocabulary_size: int) -> Transformer:
        return Transformer(self, channels=channels, vocabulary_size=vocabulary_size)


class Layer(NamedTuple):
    keys: Tensor
    values: Tensor


class Memory(NamedTuple):
    layers: tuple[Layer, ...]  # a decoder layer: keys and values of the regions, (B, N, H)
    valid: Tensor | None  # (B, N)


class Carry(NamedTuple):
    layers: tuple[Layer, ...]  # a decoder layer: keys and values of the t words read, (B, K, t, H)


class Transformer(Decoder):
    """Decoder of Vaswani et al. 2017, normalised before each part (Xiong et al. 2020), over image regions.

    Each layer: self-attention over the words read (eq. 1, causal), attention to the regions, feed-forward
    (eq. 2) with GELU. Positions are learned. The regions are projected, normalised and, with
    `encoder_layers`, attend to one another first. An image's K sequences query its regions as one
    row of K x T queries: the regions' keys and values are neither copied nor computed twice.
    `Step.attention` is the mean over heads and layers of the attention to regions; in `forward` it is None
    while training, where computing it would cost and nothing reads it.
    """

    def __init__(self, config: TransformerConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        self.project = nn.Sequential(
            nn.Linear(channels, config.hidden), nn.LayerNorm(config.hidden), nn.Dropout(config.dropout)
        )
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.encoder_norm = nn.LayerNorm(config.hidden) if config.encoder_layers else nn.Identity()
        self.embedding = nn.Embedding(vocabulary_size, config.hidden)
        self.positions = nn.Embedding(config.max_length, config.hidden)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden)
        self.words = nn.Linear(config.hidden, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.embedding.weight, std=config.hidden**-0.5)
        nn.init.normal_(self.positions.weight, std=config.hidden**-0.5)
        for (
            layer
        ) in self._layers:  # residual branches begin small, as many as there are (Radford et al. 2019)
            for out in (layer.self_out, layer.region_out, layer.narrow):
                nn.init.normal_(out.weight, std=(out.in_features * 3 * config.layers) ** -0.5)
        if config.tied:
            self.words.weight = self.embedding.weight  # Press and Wolf 2017

    @property
    def _layers(self) -> Iterable[DecoderLayer]:
        return cast(Iterable[DecoderLayer], self.layers)

    def remember(self, features: Features) -> Memory:
        regions = self.project(features.regions)  # (B, N, H)
        for layer in cast(Iterable[EncoderLayer], self.encoder):
            regions = layer(regions, features.valid)
        regions = self.encoder_norm(regions)
        return Memory(
            layers=tuple(Layer(*layer.region_in(regions).chunk(2, -1)) for layer in self._layers),
            valid=features.valid,
        )

    def start(self, memory: Memory, width: int) -> Carry:
        empty = memory.layers[0].keys.new_empty(len(memory.layers[0].keys), width, 0, self.config.hidden)
        return Carry(layers=tuple(Layer(keys=empty, values=empty) for _ in self.layers))

    def step(self, words: Tensor, carry: Carry, memory: Memory) -> tuple[Step, Carry]:
        x = self._embed(words[..., None], carry.layers[0].keys.shape[2])[:, :, 0]  # (B, K, H)
        grown, shown = [], []
        for layer, past, regions in zip(self._layers, carry.layers, memory.layers, strict=True):
            query, key, value = layer.self_in(layer.self_norm(x))[:, :, None].chunk(3, -1)  # (B, K, 1, H)
            past = Layer(keys=torch.cat([past.keys, key], 2), values=torch.cat([past.values, value], 2))
            seen = multi_head(
                *(part.flatten(0, 1) for part in (query, *past)),
                heads=self.config.heads,
                dropout=layer.drop_rate(),
            )
            x = x + layer.drop(layer.self_out(seen.view_as(x)))
            query = layer.region_query(layer.region_norm(x))
            shown.append(_weights(query, regions.keys, memory.valid, self.config.heads))
            x = x + layer.drop(layer.region_out(_mix(shown[-1], regions.values)))
            x = x + layer.feed(x)
            grown.append(past)
        attention = torch.stack(shown).mean((0, 2))
        return Step(hidden=self.norm(x), attention=attention), Carry(layers=tuple(grown))

    def forward(self, words: Tensor, memory: Memory, running: Sequence[int] | None = None) -> Steps:
        _, width, length = words.shape
        x = self._embed(words, 0).flatten(1, 2)  # (B, K x T, H)
        shown = []
        for layer, regions in zip(self._layers, memory.layers, strict=True):
            each = (
                layer.self_in(layer.self_norm(x)).unflatten(1, (width, length)).flatten(0, 1)
            )  # (B x K, T, 3H)
            seen = multi_head(
                *each.chunk(3, -1), heads=self.config.heads, causal=True, dropout=layer.drop_rate()
            )
            x = x + layer.drop(layer.self_out(seen.reshape(x.shape)))
            query = layer.region_query(layer.region_norm(x))
            if self.training:
                allowed = None if memory.valid is None else memory.valid[:, None, None]
                mixed = multi_head(
                    query, *regions, heads=self.config.heads, allowed=allowed, dropout=layer.drop_rate()
                )
            else:
                shown.append(_weights(query, regions.keys, memory.valid, self.config.heads))
                mixed = _mix(shown[-1], regions.values)
            x = x + layer.drop(layer.region_out(mixed))
            x = x + layer.feed(x)
        return Steps(
            hidden=self.norm(x).unflatten(1, (width, length)),
            attention=torch.stack(shown).mean((0, 2)).unflatten(1, (width, length)) if shown else None,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        return self.words(hidden)

    def _embed(self, words: Tensor, first: int) -> Tensor:
        """(B, K, T) words that stand at positions first, first + 1, ... -> (B, K, T, H)."""
        last = first + words.shape[2]
        if last > self.config.max_length:
            raise ValueError(f"a caption of {last} words, but decoder.max_length is {self.config.max_length}")
        x = self.embedding(words) * math.sqrt(self.config.hidden) + self.positions.weight[first:last]
        return self.dropout(x)


class EncoderLayer(nn.Module):
    """Self-attention over the regions and feed-forward, both after a norm."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        size = config.hidden
        self.heads = config.heads
        self.norm, self.inside, self.out = (
            nn.LayerNorm(size),
            nn.Linear(size, 3 * size),
            nn.Linear(size, size),
        )
        self.feed_norm = nn.LayerNorm(size)
        self.wide, self.narrow = nn.Linear(size, config.feed_forward), nn.Linear(config.feed_forward, size)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, regions: Tensor, valid: Tensor | None) -> Tensor:
        """(B, N, H) -> (B, N, H)"""
        allowed = None if valid is None else valid[:, None, None]
        inside = self.inside(self.norm(regions)).chunk(3, -1)
        regions = regions + self.drop(self.out(multi_head(*inside, heads=self.heads, allowed=allowed)))
        return regions + self.drop(
            self.narrow(self.drop(nn.functional.gelu(self.wide(self.feed_norm(regions)))))
        )


class DecoderLayer(nn.Module):
    """The weights of one layer; `Transformer` says how words and regions go through them."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        size = config.hidden
        self.self_norm, self.self_in, self.self_out = (
            nn.LayerNorm(size),
            nn.Linear(size, 3 * size),
            nn.Linear(size, size),
        )
        self.region_norm, self.region_query = nn.LayerNorm(size), nn.Linear(size, size)
        self.region_in, self.region_out = nn.Linear(size, 2 * size), nn.Linear(size, size)
        self.feed_norm = nn.LayerNorm(size)
        self.wide, self.narrow = nn.Linear(size, config.feed_forward), nn.Linear(config.feed_forward, size)
        self.drop = nn.Dropout(config.dropout)

    def drop_rate(self) -> float:
        return self.drop.p if self.training else 0.0

    def feed(self, x: Tensor) -> Tensor:
        return self.drop(self.narrow(self.drop(nn.functional.gelu(self.wide(self.feed_norm(x))))))


def _weights(query: Tensor, keys: Tensor, valid: Tensor | None, heads: int) -> Tensor:
    """Attention of `query` (B, Q, H) to `keys` (B, N, H), a head each: (B, heads, Q, N)."""
    query, keys = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, keys))
    energy = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
    if valid is not None:
        energy = energy.masked_fill(~valid[:, None, None], float("-inf"))
    return torch.softmax(energy, -1)


def _mix(weights: Tensor, values: Tensor) -> Tensor:
    """`weights` (B, heads, Q, N) over `values` (B, N, H): (B, Q, H)."""
    values = values.unflatten(-1, (weights.shape[1], -1)).transpose(1, 2)
    return (weights @ values).transpose(1, 2).flatten(-2)
