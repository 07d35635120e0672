"""Benchmark of training: a step of any decoder against the same step computed naively."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioning.benchmarks import naive_baseline
from captioning.benchmarks.harness import Contenders
from captioning.benchmarks.torch_harness import compare_with_baseline, start_worker
from captioning.errors import UserError
from captioning.loaders.captions import pad_captions
from captioning.models.decoders import Decoder, DecoderConfig, SoftAttentionLSTMConfig, build, unroll
from captioning.models.decoders.soft_attention_lstm import SoftAttentionLSTM
from captioning.ops.cpu_kernels import keep_freed_memory
from captioning.tensors import Features
from captioning.text.vocabulary import SPECIALS, Vocabulary
from captioning.training.losses import caption_logprobs, cross_entropy, hard_attention, target_logits
from captioning.utils.parsing import parse_yaml_value
from captioning.utils.progress import progress
from captioning.utils.validation import members, validate

REGIONS, CHANNELS, VOCABULARY_SIZE = 49, 512, 9487
IMAGES, CAPTIONS = 10, 5

KINDS = members(DecoderConfig)
SOFT_ATTENTION = SoftAttentionLSTMConfig.kind

SIZES = {
    "embedding": 512,
    "hidden": 512,
    "attention_size": 512,
    "feed_forward": 2048,
    "heads": 8,
    "layers": 3,
}
DETERMINISTIC = {"dropout": 0.0, "gate_dropout": 0.0, "expected": 1.0}
"""Settings that switch random draws off, so that both contenders have the same loss."""


def decoder_config(kind: str, options: Sequence[str] = ()) -> DecoderConfig:
    """A decoder in the benchmark's sizes, changed by `options` ("key=value", the value YAML).

    Raises:
        UserError: an unknown kind or a wrong setting.
    """
    if kind not in KINDS:
        raise UserError(f"--decoder {kind}: there are {', '.join(KINDS)}, and all")
    known = {field.name for field in fields(KINDS[kind])} - {"kind"}
    values: dict[str, Any] = {name: value for name, value in SIZES.items() if name in known}
    for option in options:
        name, sign, text = option.partition("=")
        if not sign or name not in known - DETERMINISTIC.keys():
            settings = ", ".join(sorted(known - DETERMINISTIC.keys()))
            raise UserError(f"--decoder-option {option}: write KEY=VALUE; {kind} has {settings}")
        values[name] = parse_yaml_value(text, where=f"--decoder-option {option}")
    values.update({name: value for name, value in DETERMINISTIC.items() if name in known})
    return validate(KINDS[kind], values, where="", section="decoder")


class TrainingData(NamedTuple):
    """50 captions of 8 to 14 words of 10 images, as the training loop gets them."""

    features: Tensor  # (B, N, D)
    ids: Tensor  # (B, K, T + 1) int64
    batch_sizes: tuple[int, ...]
    tokens: int
    pad: int


def training_data(seed: int) -> TrainingData:
    generator = np.random.default_rng(seed)
    start, end, pad = Vocabulary.start, Vocabulary.end, Vocabulary.pad

    def caption() -> np.ndarray:
        words = generator.integers(len(SPECIALS), VOCABULARY_SIZE, generator.integers(8, 15))
        return np.concatenate([[start], words, [end]])

    captions = [sorted((caption() for _ in range(CAPTIONS)), key=len, reverse=True) for _ in range(IMAGES)]
    ids, batch_sizes, tokens = pad_captions(captions, captions_per_image=CAPTIONS, pad=pad)
    features = torch.from_numpy(generator.standard_normal((IMAGES, REGIONS, CHANNELS), np.float32))
    return TrainingData(features, ids, batch_sizes, tokens, pad)


def training_loss(model: Decoder, data: TrainingData) -> Tensor:
    """The loss of the training loop (`training.objective`) without random draws."""
    output = model(data.ids[..., :-1], model.encode_memory(Features(data.features)), data.batch_sizes)
    logits, targets, _ = target_logits(model, output.hidden, data.ids[..., 1:], pad=data.pad)
    loss = cross_entropy(logits, targets, smoothing=0.0)
    if output.sampled_regions is not None:
        valid = data.ids[..., 1:] != data.pad
        logprob = caption_logprobs(logits, targets, valid)
        loss = loss + hard_attention(output.attention, output.sampled_regions, logprob, valid)
    return loss / data.tokens


def unrolled_loss(model: Decoder, data: TrainingData) -> Tensor:
    """The same loss by one `step` per word, with features repeated per caption and logits for padding as well."""
    features = Features(data.features.repeat_interleave(data.ids.shape[1], 0))
    ids = data.ids.flatten(0, 1)[:, None]  # (B x K, 1, T + 1)
    logits = model.logits(unroll(model, ids[..., :-1], model.encode_memory(features)).hidden)
    return F.cross_entropy(logits.flatten(0, 2), ids[..., 1:].flatten(), ignore_index=data.pad)


def training_step(
    model: nn.Module, compute_loss: Callable[[], Tensor], *, naive: bool
) -> Callable[[], Tensor]:
    """Forward, backward, clipping and Adam: as in the training loop, or with torch's defaults if `naive`."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=not naive)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = compute_loss()
        loss.backward()
        if naive:
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        else:
            gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            if norm > 5.0:
                nn.utils.clip_grads_with_norm_(model.parameters(), 5.0, norm)
        optimizer.step()
        return loss.detach()

    return step


def soft_attention_lstm(seed: int) -> SoftAttentionLSTM:
    torch.manual_seed(seed)
    config = SoftAttentionLSTMConfig(embedding=512, hidden=512, attention_size=512, dropout=0.0)
    decoder = build(config, channels=CHANNELS, vocabulary_size=VOCABULARY_SIZE)
    assert isinstance(decoder, SoftAttentionLSTM)
    return decoder


def _soft_attention_contenders(seed: int) -> Contenders:
    data, ours, naive = training_data(seed), soft_attention_lstm(seed), soft_attention_lstm(seed)

    def naive_loss() -> Tensor:
        return naive_baseline.loss(naive, data.features, data.ids, pad=data.pad)

    return Contenders(
        training_step(ours, partial(training_loss, ours, data), naive=False),
        training_step(naive, naive_loss, naive=True),
    )


def _unrolled_contenders(config: DecoderConfig, seed: int) -> Contenders:
    data = training_data(seed)

    def decoder() -> Decoder:
        torch.manual_seed(seed)
        return build(config, channels=CHANNELS, vocabulary_size=VOCABULARY_SIZE)

    ours, naive = decoder(), decoder()
    return Contenders(
        training_step(ours, partial(training_loss, ours, data), naive=False),
        training_step(naive, partial(unrolled_loss, naive, data), naive=True),
    )


def benchmark_decoder(config: DecoderConfig, *, repeats: int | None = None, seed: int = 0) -> dict[str, Any]:
    """A training step on 50 captions of 8 to 14 words of 10 images.

    The soft attention LSTM is compared with `naive_baseline`, any other decoder with its own `step` unrolled.

    Raises:
        RuntimeError: the contenders' losses differ.
    """
    if config == decoder_config(SOFT_ATTENTION):
        make: Callable[[int], Contenders] = _soft_attention_contenders
        baseline, repeats = "as in well-known reproductions", repeats or 15
    else:
        make = partial(_unrolled_contenders, config)
        baseline, repeats = "its step unrolled", repeats or 7
    worker = start_worker(make, seed)
    keep_freed_memory()  # as captioning train does
    result, ours, naive = compare_with_baseline(
        make(seed), worker, repeats=repeats, units=IMAGES * CAPTIONS, unit="captions"
    )
    difference = float(abs(ours - naive) / naive)
    if difference > 1e-4:
        raise RuntimeError(f"the contenders disagree: losses {ours} and {naive}")
    return {
        "name": "train",
        **result,
        "loss_difference": difference,
        "decoder": config.kind,
        "naive_baseline": baseline,
    }


def benchmark_all(*, repeats: int = 7, seed: int = 0) -> dict[str, Any]:
    """`benchmark_decoder` of every kind, with its share of the peak relative to the soft attention LSTM's."""
    results = [
        benchmark_decoder(decoder_config(kind), repeats=repeats, seed=seed)
        for kind in progress(KINDS, desc="decoders", unit="decoder")
    ]
    soft_attention = next(result for result in results if result["decoder"] == SOFT_ATTENTION)
    for result in results:
        result["share_beside_soft_attention"] = result["peak_share"] / soft_attention["peak_share"]
    return {"name": "train", "decoders": results}


def lines(result: Mapping[str, Any]) -> list[str]:
    """The result as a printed table with one line per decoder."""
    results = result.get("decoders", [result])
    columns = (
        ("captions/s", 11),
        ("naive", 9),
        ("ratio", 7),
        ("of peak", 9),
        ("GFLOP", 7),
        ("memory", 9),
        ("naive", 9),
    )
    table = [f"{'decoder':22}" + "".join(f"{name:>{width}}" for name, width in columns)]
    for row in results:
        memory = row["memory_mb"]
        table.append(
            f"{row['decoder']:22}{row['ours_per_s']:11.1f}{row['naive_baseline_per_s']:9.1f}{row['ratio']:7.2f}"
            f"{100 * row['peak_share']:7.0f} %{row['gflop']:7.1f}{memory['ours']:6.0f} MB"
            f"{memory['naive_baseline']:6.0f} MB"
        )
    return [
        *table,
        f"naive: {SOFT_ATTENTION} as in well-known reproductions; the others by their own step, word for word, with",
        "features repeated for every caption (for the Transformers over a cache, as nobody trains them).",
        f"of peak: share of a large matrix product's {results[0]['peak_gflops']:.0f} GFLOP/s with "
        f"{results[0]['threads']} threads; memory above the model's.",
    ]
