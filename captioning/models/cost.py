"""The cost of a decoder: parameters, FLOPs and bytes of state; and the sizes that meet a given cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from captioning.errors import UserError
from captioning.models.decoders import Decoder, DecoderConfig, build, reorder_state
from captioning.models.decoders.base import tensors_of
from captioning.ops.cpu_kernels.probe import flop_formulas
from captioning.tensors import Features

WIDTHS = ("embedding", "hidden", "attention_size", "features", "feed_forward")
"""Fields of decoder configs that are sizes of vectors: `solve_width` scales them."""

Measure = Callable[[Any], int]
"""A decoder config -> its cost."""


def parameters(config: DecoderConfig, *, channels: int, vocabulary_size: int) -> int:
    """Number of parameters of the decoder, a tied matrix counted once. No memory is allocated for them."""
    decoder = _meta_decoder(config, channels=channels, vocabulary_size=vocabulary_size)
    return sum(parameter.numel() for parameter in decoder.parameters())


def flops_per_caption(
    config: DecoderConfig,
    *,
    channels: int,
    vocabulary_size: int,
    regions: int,
    words: int,
    captions: int = 5,
    train: bool = True,
) -> int:
    """FLOPs of one caption with teacher forcing: from the features to the logits of `words` words, and back.

    Only matrix products and convolutions are counted (`torch.utils.flop_counter`: 2 per multiplication), no
    elementwise operations. The encoder, the loss and the optimizer are not included.

    Args:
        channels, regions: D and N of the features, which have no gradient.
        words: of a caption, including `<end>`.
        captions: of an image, which share the computation that is done once per image.
        train: include the backward pass.
    """
    decoder = _meta_decoder(config, channels=channels, vocabulary_size=vocabulary_size).train(train)
    with torch.device("meta"):
        features = Features(torch.empty(1, regions, channels))
        ids = torch.empty(1, captions, words, dtype=torch.int64)
    with counting() as counter, torch.set_grad_enabled(train):
        logits = decoder.logits(decoder(ids, decoder.encode_memory(features)).hidden)
        if train:
            logits.sum().backward()  # type: ignore[no-untyped-call]
    return round(counter.get_total_flops() / captions)


def decoding_flops(
    config: DecoderConfig, *, channels: int, vocabulary_size: int, regions: int, words: int, width: int
) -> int:
    """FLOPs (see `flops_per_caption`) of decoding `words` words for one image with a beam of `width`."""
    with counting() as counter:
        _decode(config, channels, vocabulary_size, regions=regions, words=words, width=width)
    return counter.get_total_flops()


def state_bytes(
    config: DecoderConfig, *, channels: int, vocabulary_size: int, regions: int, words: int, width: int
) -> int:
    """Bytes of float32 state that a beam of `width` holds for one image after `words` words, at most.

    A Transformer holds fewer where hypotheses share words (see `KVCache`): this is the size for hypotheses that
    differ from the first word on.
    """
    state = _decode(config, channels, vocabulary_size, regions=regions, words=words, width=width)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(state))


def solve_width(config: Any, target: int, measure: Measure) -> Any:
    """`config` with its `WIDTHS` scaled by one factor, so that its cost comes as close to `target` as possible.

    Proportions are kept up to rounding; where the config has heads that must divide its sizes, these stay multiples
    of twice the number of heads (rotary positions rotate pairs). `feed_forward`, which nothing has to divide, is then
    adjusted alone to make up for that rounding.

    Raises:
        UserError: no width comes within 10 % of the target.
    """
    settings = {field.name: getattr(config, field.name) for field in fields(config)}
    widths = {name: settings[name] for name in WIDTHS if settings.get(name)}
    try:
        unit, _ = 1, replace(config, **{name: size + 1 for name, size in widths.items()})
    except ValueError:  # heads have to divide them
        unit = 2 * settings["heads"]
    measure = cache(measure)

    def scaled(units: int) -> Any:
        factor = units / widths["hidden"]
        return replace(config, **{name: unit * max(1, round(size * factor)) for name, size in widths.items()})

    best = _closest(scaled, target, measure)
    if "feed_forward" in widths and unit > 1:
        adjusted = _closest(lambda size: replace(best, feed_forward=size), target, measure)
        best = min(best, adjusted, key=lambda candidate: abs(measure(candidate) - target))
    if abs(measure(best) - target) > target / 10:
        raise UserError(
            f"decoder {config.kind}: no width costs about {target:,}; the nearest, hidden {best.hidden}, "
            f"costs {measure(best):,}; choose another size to be matched"
        )
    return best


def _closest(make: Callable[[int], Any], target: int, measure: Measure) -> Any:
    """`make(n)` for the n >= 1 whose cost, which rises with n, is closest to the target."""
    high = 1
    while measure(make(high)) < target and high < 1 << 20:
        high *= 2
    low = high // 2  # too low, or 0
    while high - low > 1:
        middle = (low + high) // 2
        if measure(make(middle)) < target:
            low = middle
        else:
            high = middle
    candidates = (make(n) for n in (low, high) if n)
    return min(candidates, key=lambda candidate: abs(measure(candidate) - target))


def _meta_decoder(config: DecoderConfig, *, channels: int, vocabulary_size: int) -> Decoder:
    """The decoder on torch's meta device: shapes without numbers."""
    with torch.random.fork_rng(devices=()), torch.device("meta"):
        decoder = build(config, channels=channels, vocabulary_size=vocabulary_size)
    return decoder.to("meta")  # `skip_init` makes its tensors on the CPU, whatever the device


@torch.no_grad()
def _decode(
    config: DecoderConfig, channels: int, vocabulary_size: int, *, regions: int, words: int, width: int
) -> Any:
    """The state after `words` steps of a search in which one hypothesis becomes `width` after the first step."""
    decoder = _meta_decoder(config, channels=channels, vocabulary_size=vocabulary_size).eval()
    with torch.device("meta"):
        memory = decoder.encode_memory(Features(torch.empty(1, regions, channels)))
        state = decoder.init_state(memory, 1)
        for t in range(words):
            ids = torch.empty(1, width if t else 1, dtype=torch.int64)
            output, state = decoder.step(ids, state, memory)
            decoder.logits(output.hidden)
            state = reorder_state(state, torch.empty(1, width, dtype=torch.int64))
    return state


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """torch's FLOP counter, with the products that it omits: matrix by vector, and those of the CPU kernels."""
    aten = torch.ops.aten
    formulas = {aten.mv: _mv_flops, aten.addmv: _addmv_flops, **flop_formulas()}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        yield counter


def _mv_flops(matrix: torch.Size, vector: torch.Size, **_: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _addmv_flops(added: torch.Size, matrix: torch.Size, vector: torch.Size, **_: Any) -> int:
    return _mv_flops(matrix, vector)
