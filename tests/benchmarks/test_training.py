"""The benchmark of training: both contenders have the same loss and gradient, and nothing is random."""

import dataclasses

import numpy as np
import pytest
import torch

from captioning.benchmarks.training import (
    KINDS,
    TrainingData,
    decoder_config,
    lines,
    training_loss,
    unrolled_loss,
)
from captioning.errors import UserError
from captioning.loaders.captions import pad_captions
from captioning.models.decoders import build
from captioning.text.vocabulary import Vocabulary

D, N, V = 11, 5, 23


def small_config(kind):
    """The benchmark's decoder with sizes of 16."""
    config = decoder_config(kind)
    sizes = {
        name: 16
        for name in ("embedding", "hidden", "attention_size", "feed_forward")
        if hasattr(config, name)
    }
    return dataclasses.replace(config, **sizes)


def training_data():
    rng = np.random.default_rng(0)
    captions = [
        [np.array([Vocabulary.start, *rng.integers(4, V, length), Vocabulary.end]) for length in lengths]
        for lengths in ((7, 4, 2), (5, 3, 3))
    ]
    ids, batch_sizes, tokens = pad_captions(captions, captions_per_image=3, pad=Vocabulary.pad)
    features = torch.randn(2, N, D, dtype=torch.float64)
    return TrainingData(features, ids, batch_sizes, tokens, Vocabulary.pad)


@pytest.mark.parametrize("kind", KINDS)
def test_contenders_have_the_same_loss_and_gradient(kind):
    torch.manual_seed(1)
    model = build(small_config(kind), channels=D, vocabulary_size=V).double().train()
    data, results = training_data(), []
    for compute_loss in (training_loss, unrolled_loss):
        model.zero_grad()
        loss = compute_loss(model, data)
        loss.backward()
        results.append([loss.detach(), *(weight.grad for weight in model.parameters())])
    assert len(results[0]) > 5
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_random(kind):
    config = decoder_config(kind)
    assert all(getattr(config, name) == 0 for name in ("dropout", "gate_dropout") if hasattr(config, name))


def test_settings_of_the_decoder():
    assert decoder_config("transformer", ["layers=6"]).layers == 6
    assert decoder_config("transformer").hidden == 512 and decoder_config("transformer").layers == 3
    for kind, option, message in (
        ("lstm", "layers=6", "--decoder lstm: there are show_tell, .*, and all"),
        (
            "up_down",
            "layers=6",
            "--decoder-option layers=6: write KEY=VALUE; up_down has attention_size, embedding",
        ),
        ("transformer", "dropout=0.1", "--decoder-option dropout=0.1"),
        ("transformer", "layers=many", "decoder.layers: .*integer"),
        ("transformer", "heads=7", "decoder: hidden must be a multiple of heads, got 512 and 7"),
    ):
        with pytest.raises(UserError, match=message):
            decoder_config(kind, [option])


def test_the_table_has_one_line_per_decoder():
    result = {
        "decoder": "up_down", "ours_per_s": 101.0, "naive_baseline_per_s": 53.0, "ratio": 1.9, "peak_share": 0.37,
        "gflop": 47.0, "memory_mb": {"ours": 11.0, "naive_baseline": 13.0}, "peak_gflops": 71.0, "threads": 2,
    }  # fmt: skip
    row = ["up_down", "101.0", "53.0", "1.90", "37", "%", "47.0", "11", "MB", "13", "MB"]
    assert lines(result)[1].split() == lines({"decoders": [result]})[1].split() == row
