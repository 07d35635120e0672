"""What the Transformer decoders share: cached self-attention over tokens, and attention to an image's regions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from captioning.ops.attention import multi_head
from captioning.ops.kv_cache import KVCache


class RegionHeads(NamedTuple):
    """Keys and values of an image's regions, split into heads of size d = H / heads."""

    keys: Tensor  # (B, heads, N, d)
    values: Tensor  # (B, heads, N, d)


def split_region_heads(kv: Tensor, *, heads: int, training: bool) -> RegionHeads:
    """Keys and values (B, N, 2H), side by side, in the memory layout that `attend_regions` reads.

    Not when training, the keys' transpose is made contiguous: the small products of a step would otherwise copy it
    every time, and read it two and a half times as fast.
    """
    keys, values = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in kv.chunk(2, -1))
    keys = keys.contiguous() if training else keys.transpose(-1, -2).contiguous().transpose(-1, -2)
    return RegionHeads(keys=keys, values=values.contiguous())


def attend_regions(
    query: Tensor, regions: RegionHeads, mask: Tensor | None, *, dropout: float, return_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Attention (Vaswani et al. 2017, eq. 1) of `query` (B, Q, H) to the regions.

    Returns:
        (B, Q, H), and with `return_weights` the weights (B, heads, Q, N), without dropout.
    """
    heads = regions.keys.shape[1]
    if return_weights:
        query = query * (query.shape[-1] // heads) ** -0.5
    query = query.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, Q, d)
    allowed = None if mask is None else mask[:, None, None]
    if not return_weights:
        context = nn.functional.scaled_dot_product_attention(
            query, *regions, attn_mask=allowed, dropout_p=dropout
        )
        return context.transpose(1, 2).flatten(-2), None
    scores = query @ regions.keys.transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    weights = torch.softmax(scores, -1)
    return (weights @ regions.values).transpose(1, 2).flatten(-2), weights


class TokenLayer(Protocol):
    """A decoder layer, except for the self-attention itself, which reads a cache or whole captions.

    `x` is (B, Q, H): Q tokens of an image's sequences side by side.
    """

    def dropout_rate(self) -> float: ...

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of the self-attention, (B, Q, H) each."""

    def after_self_attention(
        self, x: Tensor, attended: Tensor, regions: Any, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's output, and its attention to the regions (B, heads, Q, N).

        Args:
            attended: (B, Q, H), the result of the self-attention.
        """


Rotation = Callable[[Tensor, int], Tensor]
"""Queries or keys (..., T, H) and the position of the first -> the same, rotated by their positions."""


def no_rotation(x: Tensor, first: int) -> Tensor:
    return x


def decode_step(
    layers: Iterable[TokenLayer],
    x: Tensor,
    state: KVCache,
    regions: Sequence[Any],
    mask: Tensor | None,
    *,
    heads: int,
    rotate: Rotation = no_rotation,
) -> tuple[Tensor, Tensor | None, KVCache]:
    """One token `x` (B, K, H) per sequence through all layers: output (B, K, H), attention (B, K, N), next state."""
    position = state.length
    state, allowed = state.extend()
    weights = []
    for number, (layer, layer_regions) in enumerate(zip(layers, regions, strict=True)):
        query, key, value = layer.project_qkv(x)
        query, key = (rotate(part[:, :, None], position)[:, :, 0] for part in (query, key))
        keys, values = state.write(number, key, value)
        attended = multi_head(query, keys, values, heads=heads, allowed=allowed, dropout=layer.dropout_rate())
        x, layer_weights = layer.after_self_attention(x, attended, layer_regions, mask)
        weights.append(layer_weights)
    return x, _mean_attention(weights), state


def decode_sequence(
    layers: Iterable[TokenLayer],
    x: Tensor,
    regions: Sequence[Any],
    mask: Tensor | None,
    *,
    heads: int,
    rotate: Rotation = no_rotation,
) -> tuple[Tensor, Tensor | None]:
    """Whole captions `x` (B, K, T, H) through all layers: output (B, K, T, H), attention (B, K, T, N)."""
    sequences, length = x.shape[1:3]
    x, weights = x.flatten(1, 2), []  # (B, K x T, H)
    for layer, layer_regions in zip(layers, regions, strict=True):
        query, key, value = (part.unflatten(1, (sequences, length)) for part in layer.project_qkv(x))
        qkv = (rotate(query, 0), rotate(key, 0), value)
        attended = multi_head(
            *(part.flatten(0, 1) for part in qkv),  # (B x K, T, H)
            heads=heads,
            causal=True,
            dropout=layer.dropout_rate(),
        )
        x, layer_weights = layer.after_self_attention(x, attended.reshape(x.shape), layer_regions, mask)
        weights.append(layer_weights)
    attention = _mean_attention(weights)
    if attention is not None:
        attention = attention.unflatten(1, (sequences, length))
    return x.unflatten(1, (sequences, length)), attention


def _mean_attention(weights: Sequence[Tensor | None]) -> Tensor | None:
    """The mean over layers and heads of weights (B, heads, Q, N): (B, Q, N); None if they were not returned."""
    known = [layer_weights.mean(1) for layer_weights in weights if layer_weights is not None]
    return torch.stack(known).mean(0) if known else None


def empty_cache(regions: RegionHeads, *, num_sequences: int, size: int, layers: int) -> KVCache:
    """The state before the first token, on the regions' device."""
    values = regions.values
    return KVCache.empty(values, images=len(values), num_sequences=num_sequences, size=size, layers=layers)
