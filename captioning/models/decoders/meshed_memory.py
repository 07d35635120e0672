"""Meshed-memory Transformer. Knows ids and regions, never words or pixels."""

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
from captioning.models.decoders.transformer import Regions, check_sizes, in_heads, look, read_word, read_words
from captioning.ops.attention import multi_head
from captioning.ops.cpu_kernels import VocabProjection
from captioning.ops.kv_cache import KVCache, no_words
from captioning.ops.positions import sinusoids
from captioning.tensors import Features, SequenceOutput, StepOutput

Size = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class MeshedMemoryConfig(BaseDecoderConfig):
    """Sizes of the decoder; `slots` is how many keys and values an encoder layer has learned by heart."""

    kind: Literal["meshed_memory"] = "meshed_memory"
    hidden: Size = 512
    feed_forward: Size = 2048
    heads: Size = 8
    layers: Size = 3
    encoder_layers: Size = 3
    slots: Size = 40
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def __post_init__(self) -> None:
        check_sizes(self.hidden, self.heads, "sinusoidal")

    def build(self, *, channels: int, vocabulary_size: int) -> MeshedMemory:
        return MeshedMemory(self, channels=channels, vocabulary_size=vocabulary_size)


class Memory(NamedTuple):
    layers: tuple[tuple[Regions, ...], ...]  # of each decoder layer: the outputs of all encoder layers
    valid: Tensor | None  # (B, N)


class MeshedMemory(Decoder):
    """Regions that also look at learned slots; words that look at every encoder layer (Cornia et al. 2020).

    With X the regions, Y the words, [,] side by side, AddNorm(f(x)) = norm(x + f(x)):
        Attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V, in heads                      (eq. 1)
        M_mem(X) = Attention(W_q X, [W_k X, M_k], [W_v X, M_v])                        (eq. 3)
        F(X)_i   = U relu(V X_i + b) + c                                               (eq. 4)
        Z = AddNorm(M_mem(X)); X~ = AddNorm(F(Z)), X~^i being that of layer i          (eq. 5)
        M_mesh({X~^i}, Y) = sum_i alpha_i * C(X~^i, Y)                                 (eq. 6)
        C(X~^i, Y) = Attention(W_q Y, W_k X~^i, W_v X~^i)                              (eq. 7)
        alpha_i  = sigmoid(W_i [Y, C(X~^i, Y)] + b_i)                                  (eq. 8)
        Z = AddNorm(M_mesh({X~^i}, AddNorm(S_mask(Y)))); Y~ = AddNorm(F(Z))            (eq. 9)
    Every attention ends in a product W_o, as in Vaswani et al. 2017; those of eq. 7 are one for all i. Words
    have sinusoidal positions. As in the authors' code the regions are projected, bent (relu) and normalised
    first. That code has AddNorm within C, not around M_mesh, and divides eq. 6 by the square root of the
    number of encoder layers; here the equations stand as they are printed.
    `Step.attention` is the mean over heads and layers of the attention of eq. 7; None while training.
    """

    parallel = True

    def __init__(self, config: MeshedMemoryConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        self.project = nn.Sequential(
            nn.Linear(channels, config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.LayerNorm(config.hidden),
        )
        self.encoder = nn.ModuleList(MemoryLayer(config) for _ in range(config.encoder_layers))
        self.embedding = nn.Embedding(vocabulary_size, config.hidden)
        self.layers = nn.ModuleList(MeshedLayer(config) for _ in range(config.layers))
        self.vocab_projection = VocabProjection(config.hidden, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.embedding.weight, std=config.hidden**-0.5)

    @property
    def _layers(self) -> Iterable[MeshedLayer]:
        return cast(Iterable[MeshedLayer], self.layers)

    def encode_memory(self, features: Features) -> Memory:
        regions, levels = self.project(features.regions), []
        for layer in cast(Iterable[MemoryLayer], self.encoder):
            regions = layer(regions, features.valid)
            levels.append(regions)
        return Memory(
            layers=tuple(tuple(layer.see(level) for level in levels) for layer in self._layers),
            valid=features.valid,
        )

    def init_state(self, memory: Memory, num_sequences: int) -> KVCache:
        values = memory.layers[0][0].values
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
            self._layers, x, state, memory.layers, memory.valid, heads=self.config.heads
        )
        return StepOutput(hidden=x, attention=attention), state

    def forward(
        self, words: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        x, attention = read_words(
            self._layers, self._embed(words, 0), memory.layers, memory.valid, heads=self.config.heads
        )
        return SequenceOutput(hidden=x, attention=attention)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(hidden)

    def _embed(self, words: Tensor, first: int) -> Tensor:
        """(B, K, T) words that stand at positions first, first + 1, ... -> (B, K, T, H)."""
        places = torch.arange(first, first + words.shape[2], device=words.device)
        x = self.embedding(words) * math.sqrt(self.config.hidden)
        return self.dropout(x + sinusoids(places, self.config.hidden).to(x.dtype))


class MemoryLayer(nn.Module):
    """A layer over the regions (eqs. 3 to 5)."""

    def __init__(self, config: MeshedMemoryConfig):
        super().__init__()
        size = config.hidden
        self.heads = config.heads
        self.inside, self.out, self.norm = (
            nn.Linear(size, 3 * size),
            nn.Linear(size, size),
            nn.LayerNorm(size),
        )
        # as large as the authors' code has them at first
        self.slot_keys = nn.Parameter(torch.randn(config.slots, size) * (size / config.heads) ** -0.5)
        self.slot_values = nn.Parameter(torch.randn(config.slots, size) * config.slots**-0.5)
        self.wide, self.narrow = nn.Linear(size, config.feed_forward), nn.Linear(config.feed_forward, size)
        self.feed_norm = nn.LayerNorm(size)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, regions: Tensor, valid: Tensor | None) -> Tensor:
        """(B, N, H) -> (B, N, H)"""
        query, keys, values = self.inside(regions).chunk(3, -1)
        keys = torch.cat([keys, self.slot_keys.expand(len(keys), -1, -1)], 1)  # (B, N + slots, H)
        values = torch.cat([values, self.slot_values.expand(len(values), -1, -1)], 1)
        allowed = None if valid is None else F.pad(valid, (0, len(self.slot_keys)), value=True)[:, None, None]
        seen = self.out(multi_head(query, keys, values, heads=self.heads, allowed=allowed))
        regions = self.norm(regions + self.drop(seen))
        fed = self.narrow(self.drop(torch.relu(self.wide(regions))))
        return self.feed_norm(regions + self.drop(fed))


class MeshedLayer(nn.Module):
    """A layer over the words (eqs. 6 to 9); see `transformer.WordLayer`."""

    def __init__(self, config: MeshedMemoryConfig):
        super().__init__()
        size = config.hidden
        self.heads = config.heads
        self.self_in, self.self_out, self.self_norm = (
            nn.Linear(size, 3 * size),
            nn.Linear(size, size),
            nn.LayerNorm(size),
        )
        self.region_query, self.region_in = nn.Linear(size, size), nn.Linear(size, 2 * size)
        self.region_out, self.region_norm = nn.Linear(size, size), nn.LayerNorm(size)
        self.gates = nn.ModuleList(nn.Linear(2 * size, size) for _ in range(config.encoder_layers))
        self.wide, self.narrow = nn.Linear(size, config.feed_forward), nn.Linear(config.feed_forward, size)
        self.feed_norm = nn.LayerNorm(size)
        self.drop = nn.Dropout(config.dropout)

    def drop_rate(self) -> float:
        return self.drop.p if self.training else 0.0

    def see(self, regions: Tensor) -> Regions:
        """Keys and values of one encoder layer's output (B, N, H)."""
        return in_heads(*self.region_in(regions).chunk(2, -1), heads=self.heads, plain=not self.training)

    def ask(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.self_in(x).chunk(3, -1)
        return query, key, value

    def answer(
        self, x: Tensor, seen: Tensor, regions: tuple[Regions, ...], valid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        x = self.self_norm(x + self.drop(self.self_out(seen)))
        query = self.region_query(x)
        meshed, shown = torch.zeros_like(x), []
        for gate, level in zip(self.gates, regions, strict=True):
            mixed, weights = look(query, level, valid, dropout=self.drop_rate(), shown=not self.training)
            mixed = self.region_out(mixed)
            meshed = meshed + torch.sigmoid(gate(torch.cat([x, mixed], -1))) * mixed
            shown.append(weights)
        x = self.region_norm(x + self.drop(meshed))
        fed = self.narrow(self.drop(torch.relu(self.wide(x))))
        known = [weights for weights in shown if weights is not None]
        return self.feed_norm(x + self.drop(fed)), torch.cat(known, 1) if known else None
