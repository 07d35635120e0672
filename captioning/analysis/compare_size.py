"""How large a decoder is, and the width at which it is as large as wanted. Computes shapes only, no numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import TypeAdapter
from torch.utils.flop_counter import FlopCounterMode

from captioning import decoders, encoders
from captioning.decoders import DecoderConfig
from captioning.encoders import EncoderConfig
from captioning.errors import UserError
from captioning.tensors import Features

SIZES = ("hidden", "embedding", "attention_size", "features", "feed_forward")
"""The settings of a decoder that are widths: those it has are scaled together."""

UNIT = 4
"""Widths are rounded to a multiple of it; with heads to one of twice their number."""


def regions_of(encoder: EncoderConfig, *, size: int) -> tuple[int, int]:
    """Channels and number of regions that an encoder without weights gives for images of `size` pixels."""
    with torch.inference_mode():
        regions = encoders.build(encoder).eval()(torch.zeros(1, 3, size, size)).regions
    return regions.shape[2], regions.shape[1]


def size_of(
    section: Mapping[str, Any],
    *,
    channels: int,
    regions: int,
    vocabulary_size: int,
    words: int,
    captions: int,
) -> tuple[int, int]:
    """Parameters of a decoder, and FLOPs of its matrix products for one of `captions` captions of an image.

    A forward pass, teacher forced, over `words` words a caption; the share of the image's regions included.
    Training takes three times as many, a backward pass being two.
    """
    with torch.random.fork_rng(devices=()), torch.device("meta"):
        decoder = decoders.build(_config(section), channels=channels, vocabulary_size=vocabulary_size).eval()
        decoder.to("meta")  # `skip_init` makes its tensors on the CPU
        features = Features(torch.empty(1, regions, channels))
        read = torch.empty(1, captions, words, dtype=torch.int64)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        decoder.logits(decoder(read, decoder.remember(features)).hidden)
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    return parameters, counter.get_total_flops() // captions


def solve_width(
    section: Mapping[str, Any], goal: int, measure: Callable[[Mapping[str, Any]], int]
) -> tuple[float, dict[str, Any]]:
    """The factor and the section, its widths scaled by it, whose measure is nearest to `goal`.

    Args:
        measure: of a section; grows with every width.
    """
    tried: dict[str, tuple[float, float, dict[str, Any]]] = {}

    def distance(factor: float) -> float:
        found = scaled(section, factor)
        key = str(found)
        if key not in tried:
            tried[key] = (math.log(measure(found) / goal), factor, found)
        return tried[key][0]

    low, high = 1 / 32, 32.0
    for _ in range(28):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if distance(middle) < 0 else (low, middle)
    _, factor, found = min(tried.values(), key=lambda each: abs(each[0]))
    return factor, found


def scaled(section: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The section with all its widths times `factor`, rounded to what its heads allow."""
    unit = 2 * section["heads"] if "feed_forward" in section else UNIT
    widths = {name: section[name] for name in SIZES if section.get(name)}
    return {
        **section,
        **{name: max(unit, round(each * factor / unit) * unit) for name, each in widths.items()},
    }


def whole(section: Mapping[str, Any]) -> dict[str, Any]:
    """A decoder's section with every default in it."""
    return TypeAdapter(DecoderConfig).dump_python(_config(section), mode="json")


def _config(section: Mapping[str, Any]) -> DecoderConfig:
    try:
        return TypeAdapter(DecoderConfig).validate_python(dict(section))
    except ValueError as error:
        raise UserError(f"decoder {dict(section)}: {str(error).splitlines()[-1].strip()}") from None
