"""A training step of any decoder beside its own `step` unrolled, in the same run. Times, counts and compares.

Data and sizes are those of `benchmark.benchmark_train`, which has the textbook's soft attention beside ours.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from captioning.benchmarks.training_and_decoding import (
    CHANNELS,
    WORDS,
    Contenders,
    Training,
    benchmark_train,
    trained,
    training_beside,
    training_data,
    updating,
)
from captioning.errors import UserError
from captioning.models.decoders import Decoder, DecoderConfig, SoftAttentionLSTMConfig, build, unroll
from captioning.tensors import Features

KINDS: dict[str, type[Any]] = {each.kind: each for each in typing.get_args(typing.get_args(DecoderConfig)[0])}

SIZES = {
    "embedding": 512,
    "hidden": 512,
    "attention_size": 512,
    "feed_forward": 2048,
    "heads": 8,
    "layers": 3,
}

CERTAIN = {"dropout": 0.0, "gate_dropout": 0.0, "expected": 1.0}
"""What would draw at random: without it both ways give the same loss. It is computed all the same but for dropout."""

SOFT = SoftAttentionLSTMConfig.kind


def config_of(kind: str, options: Sequence[str] = ()) -> DecoderConfig:
    """The decoder of that kind in the benchmark's sizes, but for `options`, `key=value` with the values YAML.

    Raises:
        UserError: no such kind, or a setting that is wrong.
    """
    if kind not in KINDS:
        raise UserError(f"--decoder {kind}: there are {', '.join(KINDS)}, and all")
    known = {each.name for each in fields(KINDS[kind])} - {"kind"}
    values: dict[str, Any] = {name: value for name, value in SIZES.items() if name in known}
    for option in options:
        name, sign, text = option.partition("=")
        if not sign or name not in known - CERTAIN.keys():
            settings = ", ".join(sorted(known - CERTAIN.keys()))
            raise UserError(f"--decoder-option {option}: write KEY=VALUE; {kind} has {settings}")
        values[name] = yaml.safe_load(text)
    values.update({name: value for name, value in CERTAIN.items() if name in known})
    try:
        return TypeAdapter(KINDS[kind]).validate_python(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(["decoder", *map(str, problem["loc"])])
        raise UserError(f"{place}: {problem['msg'].removeprefix('Value error, ')}") from None


def benchmark_decoder(config: DecoderConfig, *, repeats: int | None = None, seed: int = 0) -> dict[str, Any]:
    """A training step (forward, backward, clipping, Adam) on 50 captions of 8 to 14 words of 10 images."""
    if config == config_of(SOFT):
        told = benchmark_train(repeats=repeats or 15, seed=seed)
        return {**told, "decoder": SOFT, "textbook": "the well-known reproductions' way"}
    told = training_beside(partial(_ways, config), repeats=repeats or 7, seed=seed)
    return {"name": "train", **told, "decoder": config.kind, "textbook": "its step unrolled"}


def benchmark_all(*, repeats: int = 7, seed: int = 0) -> dict[str, Any]:
    """`benchmark_decoder` of every kind, and each one's share of the peak beside the soft attention LSTM's."""
    decoders = [
        benchmark_decoder(config_of(kind), repeats=repeats, seed=seed)
        for kind in tqdm(KINDS, desc="decoders", leave=False, disable=None)
    ]
    soft = next(each for each in decoders if each["decoder"] == SOFT)
    for each in decoders:
        each["share_beside_soft_attention"] = each["peak_share"] / soft["peak_share"]
    return {"name": "train", "decoders": decoders}


def unrolled(model: Decoder, data: Training) -> Tensor:
    """The loss by `step`, word for word: features repeated for every caption, scores for padding as well."""
    features = Features(data.features.repeat_interleave(data.words.shape[1], 0))
    words = data.words.flatten(0, 1)[:, None]  # (B x K, 1, T + 1)
    logits = model.logits(unroll(model, words[..., :-1], model.encode_memory(features)).hidden)
    return F.cross_entropy(logits.flatten(0, 2), words[..., 1:].flatten(), ignore_index=data.pad)


def _ways(config: DecoderConfig, seed: int) -> Contenders:
    data = training_data(seed)

    def decoder() -> Decoder:
        torch.manual_seed(seed)
        return build(config, channels=CHANNELS, vocabulary_size=WORDS)

    ours, theirs = decoder(), decoder()
    return Contenders(
        updating(ours, lambda: trained(ours, data), plain=False),
        updating(theirs, lambda: unrolled(theirs, data), plain=True),
    )


def lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """A table for a person, one line a decoder."""
    head = (
        ("captions/s", 11),
        ("beside", 9),
        ("ratio", 7),
        ("of peak", 9),
        ("GFLOP", 7),
        ("memory", 9),
        ("beside", 9),
    )
    out = [f"{'decoder':22}" + "".join(f"{name:>{width}}" for name, width in head)]
    for each in results:
        memory = each["memory_mb"]
        out.append(
            f"{each['decoder']:22}{each['ours_per_s']:11.1f}{each['textbook_per_s']:9.1f}{each['ratio']:7.2f}"
            f"{100 * each['peak_share']:7.0f} %{each['gflop']:7.1f}{memory['ours']:6.0f} MB{memory['textbook']:6.0f} MB"
        )
    return [
        *out,
        f"beside: the decoder's own step unrolled, features repeated for every caption ({SOFT}: the textbook's way);",
        "for the Transformers that is word for word over a cache, which nobody trains by.",
        f"of peak: of a large matrix product, {results[0]['peak_gflops']:.0f} GFLOP/s with "
        f"{results[0]['threads']} threads; memory above the model's.",
    ]
