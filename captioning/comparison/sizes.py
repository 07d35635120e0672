"""Sizes of a study's decoders: their widths are scaled until parameters or FLOPs match."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from captioning import datasets
from captioning.comparison.study import StudyConfig
from captioning.config import ExperimentConfig
from captioning.datasets import of_split
from captioning.errors import UserError
from captioning.models import cost, encoders
from captioning.models.decoders import DecoderConfig
from captioning.utils.validation import dump


class DecoderSize(NamedTuple):
    """A system's decoder after matching."""

    decoder: dict[str, Any]  # the complete decoder section
    parameters: int
    flops: int  # training on one caption, forward and backward
    factor: float  # by which its widths were scaled

    @property
    def widths(self) -> str:
        return ", ".join(f"{key} {self.decoder[key]}" for key in cost.WIDTHS if self.decoder.get(key))


class DataShape(NamedTuple):
    """The sizes of the data that a decoder's parameters and FLOPs depend on."""

    channels: int
    regions: int
    vocabulary: int
    words: int  # mean caption length including `<end>`, rounded
    captions: int  # per image

    def parameters(self, decoder: DecoderConfig) -> int:
        return cost.parameters(decoder, channels=self.channels, vocabulary_size=self.vocabulary)

    def flops(self, decoder: DecoderConfig) -> int:
        return cost.flops_per_caption(
            decoder,
            channels=self.channels,
            vocabulary_size=self.vocabulary,
            regions=self.regions,
            words=self.words,
            captions=self.captions,
        )


def data_shape(config: ExperimentConfig) -> DataShape:
    """Read the training captions and run the encoder once, with random weights."""
    records = of_split(datasets.load(config.dataset), "train")
    captions = [caption for record in records for caption in record.captions]
    vocabulary = config.vocabulary.build(captions, tokenizer=config.text.tokenizer)
    max_length = config.vocabulary.max_length
    lengths = [min(len(vocabulary.tokenize(caption)), max_length) + 1 for caption in captions[::7]]
    encoder = encoders.build(config.encoder.without_weights()).eval()
    with torch.inference_mode():
        pixels = torch.zeros(1, 3, config.preprocessing.size, config.preprocessing.size)
        _, regions, channels = encoder(pixels).regions.shape
    return DataShape(
        channels,
        regions,
        len(vocabulary),
        round(sum(lengths) / len(lengths)),
        min(config.training.captions_per_image, len(records[0].captions)),
    )


def match_sizes(
    study: StudyConfig, configs: Mapping[str, ExperimentConfig], shape: DataShape
) -> dict[str, DecoderSize]:
    """Every system's decoder in the size that `study.match` asks for.

    Raises:
        UserError: a decoder cannot reach the target within the tolerance.
    """
    requested = {name: config.decoder for name, config in configs.items()}
    if study.match is None:
        return {name: _size(decoder, decoder, shape) for name, decoder in requested.items()}
    by, target = study.match.by, study.match.target
    measure = functools.partial(_measure, shape, by)
    value = measure(requested[target]) if isinstance(target, str) else target
    sizes = {}
    for name, decoder in requested.items():
        solved = decoder if name == target else cost.solve_width(decoder, value, measure)
        sizes[name] = _size(solved, decoder, shape)
        deviation = getattr(sizes[name], by) / value - 1
        if abs(deviation) > study.match.tolerance:
            raise UserError(
                f"study {study.name}: {name} differs by {100 * deviation:+.1f} % from {value:,} {by}, more than the "
                f"allowed {100 * study.match.tolerance:g} %; choose another match.target or its other sizes"
            )
    return sizes


def _measure(shape: DataShape, by: str, decoder: Any) -> int:
    return shape.parameters(decoder) if by == "parameters" else shape.flops(decoder)


def _size(decoder: Any, requested: Any, shape: DataShape) -> DecoderSize:
    return DecoderSize(
        dump(decoder), shape.parameters(decoder), shape.flops(decoder), decoder.hidden / requested.hidden
    )
