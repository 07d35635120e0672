"""A Transformer that reads words and looks at regions. Knows ids and regions, never words or pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from captioning.models.decoders.base import BaseDecoderConfig, Decoder
from captioning.ops.attention import multi_head
from captioning.ops.cpu_kernels import VocabProjection
from captioning.ops.kv_cache import KVCache, no_words
from captioning.ops.positions import apply_rope, sinusoids
from captioning.tensors import Features, SequenceOutput, StepOutput

Size = Annotated[int, Field(ge=1)]
Positions = Literal["learned", "sinusoidal", "rotary"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(BaseDecoderConfig):
    """The decoder's parts and sizes.

    Attributes:
        encoder_layers: layers of self-attention over the regions, before the decoder's `layers`.
        norm: `pre` normalises before each part (Xiong et al. 2020), `post` behind it (Vaswani et al. 2017),
            which needs a warm-up of the learning rate.
        positions: `learned`, or computed: `sinusoidal`, added to the words (Vaswani et al. 2017), or `rotary`,
            by which queries and keys of words are turned (Su et al. 2021).
        max_length: most words, `<start>` among them, that learned positions are for; the others know no limit.
        tied: one matrix is both the embedding and the last product (Press and Wolf 2017).
    """

    kind: Literal["transformer"] = "transformer"
    hidden: Size = 512
    feed_forward: Size = 2048
    heads: Size = 8
    layers: Size = 6
    encoder_layers: Annotated[int, Field(ge=0)] = 0
    norm: Literal["pre", "post"] = "pre"
    positions: Positions = "learned"
    max_length: Size = 64
    tied: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def __post_init__(self) -> None:
        check_sizes(self.hidden, self.heads, self.positions)

    @property
    def longest(self) -> int | None:
        """Most words that are read, `<start>` among them; None: any number."""
        return self.max_length if self.positions == "learned" else None

    def build(self, *, channels: int, vocabulary_size: int) -> Transformer:
        return Transformer(self, channels=channels, vocabulary_size=vocabulary_size)


def check_sizes(hidden: int, heads: int, positions: Positions) -> None:
    """Raises ValueError where the heads, or the pairs of numbers that positions are made of, don't fit."""
    if hidden % heads:
        raise ValueError(f"hidden must be a multiple of heads, got {hidden} and {heads}")
    if positions == "sinusoidal" and hidden % 2:
        raise ValueError(f"hidden must be even for sinusoidal positions, got {hidden}")
    if positions == "rotary" and hidden // heads % 2:
        raise ValueError(f"hidden / heads must be even for rotary positions, got {hidden} and {heads}")


class Regions(NamedTuple):
    """An image's regions as an attention in heads looks at them, with d = H / heads."""

    keys: Tensor  # (B, heads, N, d)
    values: Tensor  # (B, heads, N, d)


class Memory(NamedTuple):
    layers: tuple[Regions, ...]  # of each decoder layer
    valid: Tensor | None  # (B, N)


class Transformer(Decoder):
    """Decoder of Vaswani et al. 2017 over image regions.

    Each layer: self-attention over the words read (eq. 1, causal), attention to the regions, feed-forward
    (eq. 2), each added to what came in, with a norm before or behind (section 3.1). Differs: GELU for ReLU;
    with norms first another stands behind the last layer. The regions are projected, normalised and, with
    `encoder_layers`, attend to one another first. An image's K sequences query its regions as one
    row of K x T queries: the regions' keys and values are neither copied nor computed twice.
    `Step.attention` is the mean over heads and layers of the attention to regions; while training it is None:
    computing it would cost and nothing reads it.
    """

    parallel = True

    def __init__(self, config: TransformerConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        self.project = nn.Sequential(
            nn.Linear(channels, config.hidden), nn.LayerNorm(config.hidden), nn.Dropout(config.dropout)
        )
        last_norm = config.norm == "pre"
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.encoder_norm = (
            nn.LayerNorm(config.hidden) if config.encoder_layers and last_norm else nn.Identity()
        )
        self.embedding = nn.Embedding(vocabulary_size, config.hidden)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_length, config.hidden) if learned else None
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden) if last_norm else nn.Identity()
        self.vocab_projection = VocabProjection(config.hidden, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.embedding.weight, std=config.hidden**-0.5)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=config.hidden**-0.5)
        for layer in self._layers:
            # residual branches begin small, as many as there are (Radford et al. 2019)
            for out in (layer.self_out, layer.region_out, layer.narrow):
                nn.init.normal_(out.weight, std=(out.in_features * 3 * config.layers) ** -0.5)
        if config.tied:
            self.vocab_projection.weight = self.embedding.weight

    @property
    def _layers(self) -> Iterable[DecoderLayer]:
        return cast(Iterable[DecoderLayer], self.layers)

    def encode_memory(self, features: Features) -> Memory:
        regions = self.project(features.regions)  # (B, N, H)
        for layer in cast(Iterable[EncoderLayer], self.encoder):
            regions = layer(regions, features.valid)
        regions = self.encoder_norm(regions)
        return Memory(layers=tuple(layer.see(regions) for layer in self._layers), valid=features.valid)

    def init_state(self, memory: Memory, num_sequences: int) -> KVCache:
        values = memory.layers[0].values
        return no_words(
            values,
            images=len(values),
            width=num_sequences,
            size=self.config.hidden,
            layers=self.config.layers,
        )

    def step(self, words: Tensor, state: KVCache, memory: Memory) -> tuple[StepOutput, KVCache]:
        x = self._embed(words[..., None], state.own.shape[2])[:, :, 0]  # (B, K, H)
        x, attention, state = read_word(
            self._layers, x, state, memory.layers, memory.valid, heads=self.config.heads, turned=self._turned
        )
        return StepOutput(hidden=self.norm(x), attention=attention), state

    def forward(
        self, words: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        x, attention = read_words(
            self._layers,
            self._embed(words, 0),
            memory.layers,
            memory.valid,
            heads=self.config.heads,
            turned=self._turned,
        )
        return SequenceOutput(hidden=self.norm(x), attention=attention)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(hidden)

    def _embed(self, words: Tensor, first: int) -> Tensor:
        """(B, K, T) words that stand at positions first, first + 1, ... -> (B, K, T, H)."""
        last = first + words.shape[2]
        if self.config.longest is not None and last > self.config.longest:
            raise ValueError(f"a caption of {last} words, but decoder.max_length is {self.config.longest}")
        x = self.embedding(words) * math.sqrt(self.config.hidden)
        if self.positions is not None:
            x = x + self.positions.weight[first:last]
        elif self.config.positions == "sinusoidal":
            places = torch.arange(first, last, device=words.device)
            x = x + sinusoids(places, self.config.hidden).to(x.dtype)
        return self.dropout(x)

    def _turned(self, x: Tensor, first: int) -> Tensor:
        """Queries or keys (..., T, H) of words from position `first` on, turned where positions are rotary."""
        if self.config.positions != "rotary":
            return x
        places = torch.arange(first, first + x.shape[-2], device=x.device)
        return apply_rope(x, places, heads=self.config.heads)


class WordLayer(Protocol):
    """A layer over words, but for the self-attention itself, which goes over a cache or over whole captions.

    `x` is (B, Q, H), Q words of an image's sequences side by side.
    """

    def drop_rate(self) -> float: ...

    def ask(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of the words' self-attention, (B, Q, H) each."""

    def answer(
        self, x: Tensor, seen: Tensor, regions: Any, valid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """From what self-attention saw (B, Q, H): the layer's output, and its attention (B, heads, Q, N)."""


Turned = Callable[[Tensor, int], Tensor]
"""Queries or keys (..., T, H) of words from a position on -> the same, told where they stand."""


def read_word(
    layers: Iterable[WordLayer],
    x: Tensor,
    state: KVCache,
    regions: Sequence[Any],
    valid: Tensor | None,
    *,
    heads: int,
    turned: Turned = lambda x, first: x,
) -> tuple[Tensor, Tensor | None, KVCache]:
    """One word `x` (B, K, H) a sequence through all layers: output (B, K, H), attention (B, K, N), next carry."""
    before = state.own.shape[2]
    after, allowed = state.longer()
    shown = []
    for number, (layer, looked_at) in enumerate(zip(layers, regions, strict=True)):
        query, key, value = layer.ask(x)
        query, key = (turned(part[:, :, None], before)[:, :, 0] for part in (query, key))
        seen = multi_head(
            query, *after.add(number, key, value), heads=heads, allowed=allowed, dropout=layer.drop_rate()
        )
        x, weights = layer.answer(x, seen, looked_at, valid)
        shown.append(weights)
    return x, _mean_attention(shown), after


def read_words(
    layers: Iterable[WordLayer],
    x: Tensor,
    regions: Sequence[Any],
    valid: Tensor | None,
    *,
    heads: int,
    turned: Turned = lambda x, first: x,
) -> tuple[Tensor, Tensor | None]:
    """Whole captions `x` (B, K, T, H) through all layers: output (B, K, T, H), attention (B, K, T, N)."""
    width, length = x.shape[1:3]
    x, shown = x.flatten(1, 2), []  # (B, K x T, H)
    for layer, looked_at in zip(layers, regions, strict=True):
        query, key, value = (part.unflatten(1, (width, length)) for part in layer.ask(x))
        rows = (turned(query, 0), turned(key, 0), value)
        seen = multi_head(
            *(part.flatten(0, 1) for part in rows),  # (B x K, T, H)
            heads=heads,
            causal=True,
            dropout=layer.drop_rate(),
        )
        x, weights = layer.answer(x, seen.reshape(x.shape), looked_at, valid)
        shown.append(weights)
    attention = _mean_attention(shown)
    return (
        x.unflatten(1, (width, length)),
        None if attention is None else attention.unflatten(1, (width, length)),
    )


def _mean_attention(shown: Sequence[Tensor | None]) -> Tensor | None:
    """The mean over layers and heads of weights (B, heads, Q, N): (B, Q, N); None where they are not known."""
    known = [weights.mean(1) for weights in shown if weights is not None]
    return torch.stack(known).mean(0) if known else None


class EncoderLayer(nn.Module):
    """Self-attention over the regions and feed-forward."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        size = config.hidden
        self.heads, self.post = config.heads, config.norm == "post"
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
        inside = self.inside(_before(self.norm, regions, self.post)).chunk(3, -1)
        out = self.out(multi_head(*inside, heads=self.heads, allowed=allowed))
        regions = _behind(self.norm, regions + self.drop(out), self.post)
        wide = F.gelu(self.wide(_before(self.feed_norm, regions, self.post)))
        return _behind(self.feed_norm, regions + self.drop(self.narrow(self.drop(wide))), self.post)


class DecoderLayer(nn.Module):
    """A `WordLayer` that looks at regions and has a feed-forward part."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        size = config.hidden
        self.heads, self.post = config.heads, config.norm == "post"
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

    def see(self, regions: Tensor) -> Regions:
        """What the layer looks at, of regions (B, N, H). Laid out once, or each step would do so anew."""
        return in_heads(*self.region_in(regions).chunk(2, -1), heads=self.heads, plain=not self.training)

    def ask(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.self_in(_before(self.self_norm, x, self.post)).chunk(3, -1)
        return query, key, value

    def answer(
        self, x: Tensor, seen: Tensor, regions: Regions, valid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        x = _behind(self.self_norm, x + self.drop(self.self_out(seen)), self.post)
        query = self.region_query(_before(self.region_norm, x, self.post))
        mixed, weights = look(query, regions, valid, dropout=self.drop_rate(), shown=not self.training)
        x = _behind(self.region_norm, x + self.drop(self.region_out(mixed)), self.post)
        wide = F.gelu(self.wide(_before(self.feed_norm, x, self.post)))
        return _behind(self.feed_norm, x + self.drop(self.narrow(self.drop(wide))), self.post), weights


def _before(norm: nn.Module, x: Tensor, post: bool) -> Tensor:
    return x if post else norm(x)


def _behind(norm: nn.Module, x: Tensor, post: bool) -> Tensor:
    return norm(x) if post else x


def in_heads(keys: Tensor, values: Tensor, *, heads: int, plain: bool) -> Regions:
    """(B, N, H) -> Regions, laid out as the products of `look` read them: small ones would copy them each time.

    `plain`: for products of their own, which read the keys' transpose two and a half times as fast when that is
    the contiguous one; otherwise for torch's attention.
    """
    keys, values = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (keys, values))
    turned = keys.transpose(-1, -2).contiguous().transpose(-1, -2) if plain else keys.contiguous()
    return Regions(keys=turned, values=values.contiguous())


def look(
    query: Tensor, regions: Regions, valid: Tensor | None, *, dropout: float, shown: bool
) -> tuple[Tensor, Tensor | None]:
    """Attention (Vaswani et al. 2017, eq. 1) of `query` (B, Q, H) to regions.

    Returns:
        (B, Q, H), and with `shown` the weights (B, heads, Q, N), to which no dropout is applied.
    """
    heads = regions.keys.shape[1]
    if shown:
        query = query * (query.shape[-1] // heads) ** -0.5
    query = query.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, Q, d)
    allowed = None if valid is None else valid[:, None, None]
    if not shown:
        mixed = nn.functional.scaled_dot_product_attention(
            query, *regions, attn_mask=allowed, dropout_p=dropout
        )
        return mixed.transpose(1, 2).flatten(-2), None
    energy = query @ regions.keys.transpose(-1, -2)
    if allowed is not None:
        energy = energy.masked_fill(~allowed, float("-inf"))
    weights = torch.softmax(energy, -1)
    return (weights @ regions.values).transpose(1, 2).flatten(-2), weights
