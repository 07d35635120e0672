"""Small configs of every decoder in `DecoderConfig`, made from the fields of each config, and inputs for them."""

from __future__ import annotations

import dataclasses
import itertools
import typing

import torch

from captioning.generation import BeamConfig, GreedyConfig, search
from captioning.models.decoders import (
    AoAConfig,
    Att2inConfig,
    BaseDecoderConfig,
    Decoder,
    DecoderConfig,
    HardAttentionLSTMConfig,
    ShowTellConfig,
    SoftAttentionLSTMConfig,
    TransformerConfig,
    UpDownConfig,
    build,
)
from captioning.tensors import Features
from captioning.text.vocabulary import SpecialTokens

CHANNELS, VOCABULARY = 19, 29
SPECIAL = SpecialTokens(start=1, end=2, suppress_ids=(0, 1, 3))
KINDS: tuple[type[BaseDecoderConfig], ...] = typing.get_args(typing.get_args(DecoderConfig)[0])


def small_config(kind: type[BaseDecoderConfig], **settings: object) -> BaseDecoderConfig:
    """A config of this kind with small sizes and no dropout, besides `settings`.

    Sizes of vectors (a default of 32 or more) get different primes where the config accepts them, counts of layers or
    heads (a smaller default) a few; the first combination that the config does not refuse is taken.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(kind) if field.name not in settings}
    integers = [name for name, value in defaults.items() if type(value) is int]
    sizes = [name for name in integers if defaults[name] >= 32]
    counts = [name for name in integers if defaults[name] < 32]
    fixed = {name: 0.0 for name in defaults if "dropout" in name} | settings
    primes = itertools.cycle((7, 13, 17, 11, 23))
    candidates = [(next(primes), 15, 14, 12) for _ in sizes]
    candidates += [(2, 3, 5) if place % 2 else (3, 2, 5) for place in range(len(counts))]
    for values in itertools.product(*candidates):
        try:
            return kind(**dict(zip((*sizes, *counts), values, strict=True)), **fixed)
        except ValueError:  # such as a size that the number of heads does not divide
            continue
    raise AssertionError(f"no small sizes found for {kind.__name__}")


CONFIGS: dict[str, BaseDecoderConfig] = {config.kind: config for config in map(small_config, KINDS)} | {
    "soft_attention_lstm, projected": small_config(SoftAttentionLSTMConfig, features=11),
    "soft_attention_lstm, gru, dot": small_config(SoftAttentionLSTMConfig, cell="gru", attention="dot"),
    "soft_attention_lstm, rnn, multi_head": small_config(
        SoftAttentionLSTMConfig, cell="rnn", attention="multi_head"
    ),
    "show_tell, gru": small_config(ShowTellConfig, cell="gru"),
    "show_tell, rnn": small_config(ShowTellConfig, cell="rnn"),
    "hard_attention_lstm, projected": small_config(HardAttentionLSTMConfig, features=11),
    "att2in, projected": small_config(Att2inConfig, features=11),
    "aoa, not refined": small_config(AoAConfig, refining=0),
    "up_down, projected": small_config(UpDownConfig, features=11),
    "transformer, no encoder": small_config(TransformerConfig, encoder_layers=0),
    "transformer, tied": small_config(TransformerConfig, layers=1, tied=True),
    "transformer, post, sinusoidal": small_config(
        TransformerConfig, layers=2, encoder_layers=1, norm="post", positions="sinusoidal"
    ),
    "transformer, rotary": small_config(TransformerConfig, layers=2, encoder_layers=0, positions="rotary"),
}
"""One of every kind, and settings that change what a decoder computes."""
RECURRENT = [name for name, config in CONFIGS.items() if hasattr(config, "forget_bias")]


def make(name: str, *, seed: int = 0, **changes: object) -> Decoder:
    """A decoder in float64 and eval mode, with all parameters moved away from zeros and ones, which hide mistakes."""
    torch.manual_seed(seed)
    config = dataclasses.replace(CONFIGS[name], **changes)
    decoder = build(config, channels=CHANNELS, vocabulary_size=VOCABULARY).double().eval()
    for parameter in decoder.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return decoder


def scene(
    images: int, sequences: int, regions: int, length: int, *, seed: int = 0, masked: bool = False
) -> tuple[Features, torch.Tensor]:
    """Random features (B, N, CHANNELS) float64, some of them invalid if `masked`, and ids (B, K, T)."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, regions, CHANNELS, generator=generator, dtype=torch.double)
    ids = torch.randint(VOCABULARY, (images, sequences, length), generator=generator)
    mask = None
    if masked:
        mask = torch.rand(images, regions, generator=generator) < 0.6
        mask[:, 0] = True
    return Features(regions=features, mask=mask), ids


def check_search(decoder: Decoder, memory: object) -> None:
    """Greedy search is a beam of one, and `forward` gives the log-probabilities that a beam search reports."""
    configs = (
        GreedyConfig(max_length=7),
        BeamConfig(width=1, max_length=7),
        BeamConfig(width=5, max_length=7),
    )
    greedy, beam_of_one, beam = (search(decoder, memory, config, special=SPECIAL) for config in configs)
    assert torch.equal(greedy.ids, beam_of_one.ids)
    ids = torch.cat([torch.full_like(beam.ids[..., :1], SPECIAL.start), beam.ids[..., :-1]], -1)
    logprobs = decoder.logits(decoder(ids, memory).hidden).log_softmax(-1).gather(-1, beam.ids[..., None])
    counted = torch.arange(ids.shape[-1]) < beam.lengths[..., None]
    torch.testing.assert_close(beam.logprob, (logprobs[..., 0] * counted).sum(-1))
