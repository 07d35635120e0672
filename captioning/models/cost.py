"""What a decoder costs: parameters, products, bytes of state; and the sizes that cost so much. Measures no time."""

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
"""Fields of decoder configs that are sizes of vectors: what `solve_width` scales."""

Measure = Callable[[Any], int]
"""A decoder config -> what it costs."""


def parameters(config: DecoderConfig, *, channels: int, vocabulary_size: int) -> int:
    """Parameters of the decoder, a tied matrix counted once. Nothing is computed nor held."""
    decoder = _unfilled(config, channels=channels, vocabulary_size=vocabulary_size)
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
    """FLOPs of one caption, teacher forced: what it takes to have its `words` words' scores and their gradients.

    Counted are products (`torch.utils.flop_counter`: 2 a multiplication), not what is done element by element.
    The encoder, the loss itself and the optimizer are not in it.

    Args:
        channels, regions: D and N of the features, which have no gradient.
        words: of a caption, `<end>` among them.
        captions: of an image, which share what is computed once for it.
        train: the backward pass as well; without it the forward pass alone.
    """
    decoder = _unfilled(config, channels=channels, vocabulary_size=vocabulary_size).train(train)
    with torch.device("meta"):
        features = Features(torch.empty(1, regions, channels))
        read = torch.empty(1, captions, words, dtype=torch.int64)
    with counting() as counter, torch.set_grad_enabled(train):
        scores = decoder.logits(decoder(read, decoder.encode_memory(features)).hidden)
        if train:
            scores.sum().backward()  # type: ignore[no-untyped-call]
    return round(counter.get_total_flops() / captions)


def flops_of_decoding(
    config: DecoderConfig, *, channels: int, vocabulary_size: int, regions: int, words: int, width: int
) -> int:
    """FLOPs (see `flops_per_caption`) of finding one image's caption of `words` words by a beam of `width`."""
    with counting() as counter:
        _decoded(config, channels, vocabulary_size, regions=regions, words=words, width=width)
    return counter.get_total_flops()


def bytes_of_carry(
    config: DecoderConfig, *, channels: int, vocabulary_size: int, regions: int, words: int, width: int
) -> int:
    """Bytes of state (float32) that a beam of `width` holds for one image behind `words` words, at most.

    A Transformer holds fewer where hypotheses share words (`prefixes.KVCache`): after `words` words this is
    what hypotheses take that all parted at the first.
    """
    state = _decoded(config, channels, vocabulary_size, regions=regions, words=words, width=width)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(state))


def solve_width(config: Any, target: int, measure: Measure) -> Any:
    """`config` with its `WIDTHS` scaled together, so that `measure` of it is as near to `target` as they allow.

    Proportions stay, but for rounding; where there are heads, vectors stay multiples of twice their number
    (rotary positions turn pairs). A feed-forward size, which is bound to nothing, then takes up what that
    rounding left.

    Raises:
        UserError: no width comes within a tenth of the target.
    """
    sizes = {each.name: getattr(config, each.name) for each in fields(config)}
    widths = {name: sizes[name] for name in WIDTHS if sizes.get(name)}
    try:
        unit, _ = 1, replace(config, **{name: size + 1 for name, size in widths.items()})
    except ValueError:  # heads have to divide them
        unit = 2 * sizes["heads"]
    measure = cache(measure)

    def scaled(units: int) -> Any:
        factor = units / widths["hidden"]
        return replace(config, **{name: unit * max(1, round(size * factor)) for name, size in widths.items()})

    found = _nearest(scaled, target, measure)
    if "feed_forward" in widths and unit > 1:
        found = min(
            found,
            _nearest(lambda size: replace(found, feed_forward=size), target, measure),
            key=lambda each: abs(measure(each) - target),
        )
    if abs(measure(found) - target) > target / 10:
        raise UserError(
            f"decoder {config.kind}: no width costs about {target:,}; the nearest, hidden {found.hidden}, "
            f"costs {measure(found):,}; choose another size to be matched"
        )
    return found


def _nearest(make: Callable[[int], Any], target: int, measure: Measure) -> Any:
    """`make(n)` for the n from 1 on whose measure, which rises with n, is nearest to the target."""
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
    return min((make(n) for n in (low, high) if n), key=lambda each: abs(measure(each) - target))


def _unfilled(config: DecoderConfig, *, channels: int, vocabulary_size: int) -> Decoder:
    """The decoder on torch's meta device: shapes without numbers."""
    with torch.random.fork_rng(devices=()), torch.device("meta"):
        decoder = build(config, channels=channels, vocabulary_size=vocabulary_size)
    return decoder.to("meta")  # `skip_init` makes its tensors on the CPU, whatever the device


@torch.no_grad()
def _decoded(
    config: DecoderConfig, channels: int, vocabulary_size: int, *, regions: int, words: int, width: int
) -> Any:
    """The carry behind `words` steps of a search in which one hypothesis becomes `width` after the first."""
    decoder = _unfilled(config, channels=channels, vocabulary_size=vocabulary_size).eval()
    with torch.device("meta"):
        memory = decoder.encode_memory(Features(torch.empty(1, regions, channels)))
        state = decoder.init_state(memory, 1)
        for t in range(words):
            live = width if t else 1
            step, state = decoder.step(torch.empty(1, live, dtype=torch.int64), state, memory)
            decoder.logits(step.hidden)
            state = reorder_state(state, torch.empty(1, width, dtype=torch.int64))
    return state


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """torch's counter, and what it leaves out: products of a matrix and a vector, and those of packed weights."""
    aten = torch.ops.aten
    formulas = {aten.mv: _mv_flops, aten.addmv: _addmv_flops, **flop_formulas()}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        yield counter


def _mv_flops(matrix: torch.Size, vector: torch.Size, **_: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _addmv_flops(added: torch.Size, matrix: torch.Size, vector: torch.Size, **_: Any) -> int:
    return _mv_flops(matrix, vector)
