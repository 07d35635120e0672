"""Transformer decoder over image regions (Vaswani et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from captioning.models.decoders.base import BaseDecoderConfig, Decoder
from captioning.models.decoders.settings import Dropout, Layers, Size
from captioning.models.decoders.transformer_layers import (
    RegionHeads,
    attend_regions,
    decode_sequence,
    decode_step,
    empty_cache,
    split_region_heads,
)
from captioning.ops.attention import multi_head
from captioning.ops.cpu_kernels import VocabProjection
from captioning.ops.kv_cache import KVCache
from captioning.ops.positions import apply_rope, sinusoids
from captioning.tensors import Features, SequenceOutput, StepOutput

Positions = Literal["learned", "sinusoidal", "rotary"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(BaseDecoderConfig):
    """Settings of the decoder.

    Attributes:
        encoder_layers: layers of self-attention over the regions, before the decoder's `layers`.
        norm: `pre` normalises the input of every sublayer (Xiong et al. 2020), `post` its output (Vaswani et al.
            2017), which needs a warm-up of the learning rate.
        positions: `learned`, or computed: `sinusoidal`, added to the embeddings (Vaswani et al. 2017), or `rotary`,
            which rotates the queries and keys of tokens (Su et al. 2021).
        max_length: number of learned positions, and so of tokens that can be read, `<start>` included; computed
            positions have no limit.
        tied: the embedding and the last linear layer share one matrix (Press and Wolf 2017).
    """

    kind: Literal["transformer"] = "transformer"
    hidden: Size = 512
    feed_forward: Size = 2048
    heads: Size = 8
    layers: Layers = 6
    encoder_layers: Annotated[int, Field(ge=0, le=1000)] = 0
    norm: Literal["pre", "post"] = "pre"
    positions: Positions = "learned"
    max_length: Size = 64
    tied: bool = False
    dropout: Dropout = 0.1

    def __post_init__(self) -> None:
        check_sizes(self.hidden, self.heads, self.positions)

    @property
    def max_positions(self) -> int | None:
        """Tokens that can be read, `<start>` included; None: no limit."""
        return self.max_length if self.positions == "learned" else None

    def build(self, *, channels: int, vocabulary_size: int) -> Transformer:
        return Transformer(self, channels=channels, vocabulary_size=vocabulary_size)


def check_sizes(hidden: int, heads: int, positions: Positions) -> None:
    """Raise ValueError if `hidden` does not divide into heads, or into the pairs that computed positions need."""
    if hidden % heads:
        raise ValueError(f"hidden must be a multiple of heads, got {hidden} and {heads}")
    if positions == "sinusoidal" and hidden % 2:
        raise ValueError(f"hidden must be even for sinusoidal positions, got {hidden}")
    if positions == "rotary" and hidden // heads % 2:
        raise ValueError(f"hidden / heads must be even for rotary positions, got {hidden} and {heads}")


class Memory(NamedTuple):
    layers: tuple[RegionHeads, ...]  # of every decoder layer
    mask: Tensor | None  # (B, N)


class Transformer(Decoder):
    """Decoder of Vaswani et al. 2017 over image regions.

    Each layer: causal self-attention over the tokens (eq. 1), attention to the regions, feed-forward network (eq. 2),
    each with a residual connection and layer normalisation before or after it (section 3.1). Differs: GELU for ReLU;
    with `pre` norms another one follows the last layer. The regions are projected, normalised and, with
    `encoder_layers`, attend to one another first. An image's K sequences query its regions as one row of K x T
    queries: the regions' keys and values are neither copied nor computed twice.
    `StepOutput.attention` is the mean over heads and layers of the attention to the regions. It is None in training
    mode, where nothing reads it and computing it would cost time.
    """

    parallel = True

    def __init__(self, config: TransformerConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        self.project = nn.Sequential(
            nn.Linear(channels, config.hidden), nn.LayerNorm(config.hidden), nn.Dropout(config.dropout)
        )
        pre_norm = config.norm == "pre"
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.encoder_norm = (
            nn.LayerNorm(config.hidden) if config.encoder_layers and pre_norm else nn.Identity()
        )
        self.embedding = nn.Embedding(vocabulary_size, config.hidden)
        learned = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.max_length, config.hidden) if learned else None
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden) if pre_norm else nn.Identity()
        self.vocab_projection = VocabProjection(config.hidden, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.embedding.weight, std=config.hidden**-0.5)
        if self.position_embedding is not None:
            nn.init.normal_(self.position_embedding.weight, std=config.hidden**-0.5)
        for layer in self._layers:
            # small at first, the smaller the more residual branches there are (Radford et al. 2019)
            for proj in (layer.self_out_proj, layer.cross_out_proj, layer.fc2):
                nn.init.normal_(proj.weight, std=(proj.in_features * 3 * config.layers) ** -0.5)
        if config.tied:
            self.vocab_projection.weight = self.embedding.weight

    @property
    def _layers(self) -> Iterable[DecoderLayer]:
        return cast(Iterable[DecoderLayer], self.layers)

    def encode_memory(self, features: Features) -> Memory:
        regions = self.project(features.regions)  # (B, N, H)
        for layer in cast(Iterable[EncoderLayer], self.encoder):
            regions = layer(regions, features.mask)
        regions = self.encoder_norm(regions)
        layers = tuple(layer.project_regions(regions) for layer in self._layers)
        return Memory(layers=layers, mask=features.mask)

    def init_state(self, memory: Memory, num_sequences: int) -> KVCache:
        return empty_cache(
            memory.layers[0],
            num_sequences=num_sequences,
            size=self.config.hidden,
            layers=self.config.layers,
        )

    def step(self, ids: Tensor, state: KVCache, memory: Memory) -> tuple[StepOutput, KVCache]:
        x = self._embed(ids[..., None], state.length)[:, :, 0]  # (B, K, H)
        x, attention, state = decode_step(
            self._layers, x, state, *memory, heads=self.config.heads, rotate=self._rotate
        )
        return StepOutput(hidden=self.norm(x), attention=attention), state

    def forward(
        self, ids: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        x, attention = decode_sequence(
            self._layers, self._embed(ids, 0), *memory, heads=self.config.heads, rotate=self._rotate
        )
        return SequenceOutput(hidden=self.norm(x), attention=attention)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(hidden)

    def _embed(self, ids: Tensor, first: int) -> Tensor:
        """`ids` (B, K, T) at positions first, first + 1, ... -> (B, K, T, H)."""
        end, limit = first + ids.shape[2], self.config.max_positions
        if limit is not None and end > limit:
            raise ValueError(f"a caption of {end} words, but decoder.max_length is {limit}")
        x = self.embedding(ids) * math.sqrt(self.config.hidden)
        if self.position_embedding is not None:
            x = x + self.position_embedding.weight[first:end]
        elif self.config.positions == "sinusoidal":
            positions = torch.arange(first, end, device=ids.device)
            x = x + sinusoids(positions, self.config.hidden).to(x.dtype)
        return self.dropout(x)

    def _rotate(self, x: Tensor, first: int) -> Tensor:
        if self.config.positions != "rotary":
            return x
        positions = torch.arange(first, first + x.shape[-2], device=x.device)
        return apply_rope(x, positions, heads=self.config.heads)


class EncoderLayer(nn.Module):
    """Self-attention over the regions and feed-forward network."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        size = config.hidden
        self.heads, self.post_norm = config.heads, config.norm == "post"
        self.self_norm = nn.LayerNorm(size)
        self.qkv_proj, self.out_proj = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.ff_norm = nn.LayerNorm(size)
        self.fc1, self.fc2 = nn.Linear(size, config.feed_forward), nn.Linear(config.feed_forward, size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, regions: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, H) -> (B, N, H)"""
        allowed = None if mask is None else mask[:, None, None]
        query, key, value = self.qkv_proj(_pre(self.self_norm, regions, self.post_norm)).chunk(3, -1)
        attended = self.out_proj(multi_head(query, key, value, heads=self.heads, allowed=allowed))
        regions = _post(self.self_norm, regions + self.dropout(attended), self.post_norm)
        hidden = F.gelu(self.fc1(_pre(self.ff_norm, regions, self.post_norm)))
        return _post(self.ff_norm, regions + self.dropout(self.fc2(self.dropout(hidden))), self.post_norm)


class DecoderLayer(nn.Module):
    """A `TokenLayer`: self-attention, attention to the regions and feed-forward network."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        size = config.hidden
        self.heads, self.post_norm = config.heads, config.norm == "post"
        self.self_norm = nn.LayerNorm(size)
        self.self_qkv_proj, self.self_out_proj = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.cross_norm = nn.LayerNorm(size)
        self.cross_query_proj, self.cross_kv_proj = nn.Linear(size, size), nn.Linear(size, 2 * size)
        self.cross_out_proj = nn.Linear(size, size)
        self.ff_norm = nn.LayerNorm(size)
        self.fc1, self.fc2 = nn.Linear(size, config.feed_forward), nn.Linear(config.feed_forward, size)
        self.dropout = nn.Dropout(config.dropout)

    def dropout_rate(self) -> float:
        return self.dropout.p if self.training else 0.0

    def project_regions(self, regions: Tensor) -> RegionHeads:
        """Keys and values of regions (B, N, H), once per image."""
        return split_region_heads(self.cross_kv_proj(regions), heads=self.heads, training=self.training)

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.self_qkv_proj(_pre(self.self_norm, x, self.post_norm)).chunk(3, -1)
        return query, key, value

    def after_self_attention(
        self, x: Tensor, attended: Tensor, regions: RegionHeads, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        x = _post(self.self_norm, x + self.dropout(self.self_out_proj(attended)), self.post_norm)
        query = self.cross_query_proj(_pre(self.cross_norm, x, self.post_norm))
        context, weights = attend_regions(
            query, regions, mask, dropout=self.dropout_rate(), return_weights=not self.training
        )
        x = _post(self.cross_norm, x + self.dropout(self.cross_out_proj(context)), self.post_norm)
        hidden = F.gelu(self.fc1(_pre(self.ff_norm, x, self.post_norm)))
        x = _post(self.ff_norm, x + self.dropout(self.fc2(self.dropout(hidden))), self.post_norm)
        return x, weights


def _pre(norm: nn.Module, x: Tensor, post_norm: bool) -> Tensor:
    """The input of a sublayer."""
    return x if post_norm else norm(x)


def _post(norm: nn.Module, x: Tensor, post_norm: bool) -> Tensor:
    """The output of a sublayer with its residual connection."""
    return norm(x) if post_norm else x
