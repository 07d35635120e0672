"""Meshed-memory Transformer (Cornia et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioning.models.decoders.base import BaseDecoderConfig, Decoder
from captioning.models.decoders.settings import Dropout, Layers, Size
from captioning.models.decoders.transformer import check_sizes
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
from captioning.ops.positions import sinusoids
from captioning.tensors import Features, SequenceOutput, StepOutput


@dataclass(frozen=True, kw_only=True)
class MeshedMemoryConfig(BaseDecoderConfig):
    """Settings of the decoder.

    Attributes:
        slots: learned keys and values of an encoder layer, in addition to the regions.
    """

    kind: Literal["meshed_memory"] = "meshed_memory"
    hidden: Size = 512
    feed_forward: Size = 2048
    heads: Size = 8
    layers: Layers = 3
    encoder_layers: Layers = 3
    slots: Size = 40
    dropout: Dropout = 0.1

    def __post_init__(self) -> None:
        check_sizes(self.hidden, self.heads, "sinusoidal")

    def build(self, *, channels: int, vocabulary_size: int) -> MeshedMemory:
        return MeshedMemory(self, channels=channels, vocabulary_size=vocabulary_size)


class Memory(NamedTuple):
    layers: tuple[tuple[RegionHeads, ...], ...]  # for every decoder layer: the outputs of all encoder layers
    mask: Tensor | None  # (B, N)


class MeshedMemory(Decoder):
    """Regions that also attend to learned slots; words that attend to every encoder layer (Cornia et al. 2020).

    With X the regions, Y the words, [,] concatenation, AddNorm(f(x)) = norm(x + f(x)):
        Attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V, in heads                      (eq. 1)
        M_mem(X) = Attention(W_q X, [W_k X, M_k], [W_v X, M_v])                        (eq. 3)
        F(X)_i   = U relu(V X_i + b) + c                                               (eq. 4)
        Z = AddNorm(M_mem(X)); X~ = AddNorm(F(Z)), X~^i being that of layer i          (eq. 5)
        M_mesh({X~^i}, Y) = sum_i alpha_i * C(X~^i, Y)                                 (eq. 6)
        C(X~^i, Y) = Attention(W_q Y, W_k X~^i, W_v X~^i)                              (eq. 7)
        alpha_i  = sigmoid(W_i [Y, C(X~^i, Y)] + b_i)                                  (eq. 8)
        Z = AddNorm(M_mesh({X~^i}, AddNorm(S_mask(Y)))); Y~ = AddNorm(F(Z))            (eq. 9)
    Every attention ends in a product W_o, as in Vaswani et al. 2017; those of eq. 7 are the same for all i. Words
    have sinusoidal positions. As in the authors' code the regions are first projected, passed through a ReLU and
    normalised, and the weights hold M_k / sqrt(d) and M_v / sqrt(slots), where d is the size of a head.
    Differs from that code, which has AddNorm within C, not around M_mesh, divides eq. 6 by the square root of the
    number of encoder layers, and begins with Xavier's matrices and zero biases: here the equations are implemented as
    printed, and the matrices begin as PyTorch's layers do. Here the embedding is stored divided by sqrt(H) and has
    dropout, and the layer to the vocabulary has a bias.
    `StepOutput.attention` is the mean over heads and layers of the attention of eq. 7; None in training mode.
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
            regions = layer(regions, features.mask)
            levels.append(regions)
        layers = tuple(tuple(layer.project_regions(level) for level in levels) for layer in self._layers)
        return Memory(layers=layers, mask=features.mask)

    def init_state(self, memory: Memory, num_sequences: int) -> KVCache:
        return empty_cache(
            memory.layers[0][0],
            num_sequences=num_sequences,
            size=self.config.hidden,
            layers=self.config.layers,
        )

    def step(self, ids: Tensor, state: KVCache, memory: Memory) -> tuple[StepOutput, KVCache]:
        x = self._embed(ids[..., None], state.length)[:, :, 0]  # (B, K, H)
        x, attention, state = decode_step(self._layers, x, state, *memory, heads=self.config.heads)
        return StepOutput(hidden=x, attention=attention), state

    def forward(
        self, ids: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        x, attention = decode_sequence(self._layers, self._embed(ids, 0), *memory, heads=self.config.heads)
        return SequenceOutput(hidden=x, attention=attention)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(hidden)

    def _embed(self, ids: Tensor, first: int) -> Tensor:
        """`ids` (B, K, T) at positions first, first + 1, ... -> (B, K, T, H)."""
        positions = torch.arange(first, first + ids.shape[2], device=ids.device)
        x = self.embedding(ids) * math.sqrt(self.config.hidden)
        return self.dropout(x + sinusoids(positions, self.config.hidden).to(x.dtype))


class MemoryLayer(nn.Module):
    """An encoder layer over the regions (eqs. 3 to 5)."""

    def __init__(self, config: MeshedMemoryConfig):
        super().__init__()
        size = config.hidden
        self.heads = config.heads
        self.qkv_proj, self.out_proj = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.self_norm = nn.LayerNorm(size)
        # scaled as in the authors' code: an update by Adam moves M_k by sqrt(d) times the learning rate
        self.key_scale, self.value_scale = math.sqrt(size / config.heads), math.sqrt(config.slots)
        self.scaled_slot_keys = nn.Parameter(torch.randn(config.slots, size) / self.key_scale**2)
        self.scaled_slot_values = nn.Parameter(torch.randn(config.slots, size) / self.value_scale**2)
        self.fc1, self.fc2 = nn.Linear(size, config.feed_forward), nn.Linear(config.feed_forward, size)
        self.ff_norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, regions: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, H) -> (B, N, H)"""
        query, keys, values = self.qkv_proj(regions).chunk(3, -1)
        slot_keys = self.key_scale * self.scaled_slot_keys
        slot_values = self.value_scale * self.scaled_slot_values
        keys = torch.cat([keys, slot_keys.expand(len(keys), -1, -1)], 1)  # (B, N + slots, H)
        values = torch.cat([values, slot_values.expand(len(values), -1, -1)], 1)
        allowed = None if mask is None else F.pad(mask, (0, len(slot_keys)), value=True)[:, None, None]
        attended = self.out_proj(multi_head(query, keys, values, heads=self.heads, allowed=allowed))
        regions = self.self_norm(regions + self.dropout(attended))
        hidden = self.dropout(torch.relu(self.fc1(regions)))
        return self.ff_norm(regions + self.dropout(self.fc2(hidden)))


class MeshedLayer(nn.Module):
    """A `TokenLayer` (eqs. 6 to 9)."""

    def __init__(self, config: MeshedMemoryConfig):
        super().__init__()
        size = config.hidden
        self.heads = config.heads
        self.self_qkv_proj, self.self_out_proj = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.self_norm = nn.LayerNorm(size)
        self.cross_query_proj, self.cross_kv_proj = nn.Linear(size, size), nn.Linear(size, 2 * size)
        self.cross_out_proj, self.cross_norm = nn.Linear(size, size), nn.LayerNorm(size)
        self.alpha_proj = nn.ModuleList(nn.Linear(2 * size, size) for _ in range(config.encoder_layers))
        self.fc1, self.fc2 = nn.Linear(size, config.feed_forward), nn.Linear(config.feed_forward, size)
        self.ff_norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config.dropout)

    def dropout_rate(self) -> float:
        return self.dropout.p if self.training else 0.0

    def project_regions(self, regions: Tensor) -> RegionHeads:
        """Keys and values of one encoder layer's output (B, N, H), once per image."""
        return split_region_heads(self.cross_kv_proj(regions), heads=self.heads, training=self.training)

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.self_qkv_proj(x).chunk(3, -1)
        return query, key, value

    def after_self_attention(
        self, x: Tensor, attended: Tensor, regions: tuple[RegionHeads, ...], mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        x = self.self_norm(x + self.dropout(self.self_out_proj(attended)))
        query = self.cross_query_proj(x)
        mesh, weights = torch.zeros_like(x), []
        for alpha_proj, level in zip(self.alpha_proj, regions, strict=True):
            context, level_weights = attend_regions(
                query, level, mask, dropout=self.dropout_rate(), return_weights=not self.training
            )
            context = self.cross_out_proj(context)
            mesh = mesh + torch.sigmoid(alpha_proj(torch.cat([x, context], -1))) * context
            weights.append(level_weights)
        x = self.cross_norm(x + self.dropout(mesh))
        hidden = self.dropout(torch.relu(self.fc1(x)))
        known = [level_weights for level_weights in weights if level_weights is not None]
        return self.ff_norm(x + self.dropout(self.fc2(hidden))), torch.cat(known, 1) if known else None
