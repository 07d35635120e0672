"""The benchmark of training steps measures what it says: two ways to one gradient, all products counted."""

import dataclasses

import numpy as np
import pytest
import torch

from captioning.benchmarks.decoders import KINDS, config_of, lines, unrolled
from captioning.benchmarks.training_and_decoding import Training, flops, memory_ratios, trained
from captioning.errors import UserError
from captioning.loaders.batches import pack
from captioning.models.decoders import build
from captioning.ops.cpu_kernels import prepack_linear, probe
from captioning.text.vocabulary import Vocabulary
from tests.helpers.running import tool

D, N, V = 11, 5, 23


def small(kind):
    """The benchmark's decoder with sizes of 16."""
    config = config_of(kind)
    sizes = {
        name: 16
        for name in ("embedding", "hidden", "attention_size", "feed_forward")
        if hasattr(config, name)
    }
    return dataclasses.replace(config, **sizes)


def data():
    rng = np.random.default_rng(0)
    chosen = [
        [np.array([Vocabulary.start, *rng.integers(4, V, length), Vocabulary.end]) for length in lengths]
        for lengths in ((7, 4, 2), (5, 3, 3))
    ]
    words, batch_sizes, tokens = pack(chosen, width=3, pad=Vocabulary.pad)
    return Training(torch.randn(2, N, D, dtype=torch.float64), words, batch_sizes, tokens, Vocabulary.pad)


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_have_the_same_loss_and_gradient(kind):
    torch.manual_seed(1)
    model = build(small(kind), channels=D, vocabulary_size=V).double().train()
    batch, found = data(), []
    for way in (trained, unrolled):
        model.zero_grad()
        loss = way(model, batch)
        loss.backward()
        found.append([loss.detach(), *(each.grad for each in model.parameters())])
    assert len(found[0]) > 5
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_drawn_at_random(kind):
    config = config_of(kind)
    assert all(getattr(config, name) == 0 for name in ("dropout", "gate_dropout") if hasattr(config, name))


@pytest.mark.parametrize("mkl", [True, False], ids=["mkl", "onednn"])
def test_products_of_packed_weights_are_counted(mkl, monkeypatch):
    monkeypatch.setattr(probe, "PREFERS_MKL", mkl)
    x, weight = torch.randn(3, 5, 7), torch.randn(11, 7)
    with torch.no_grad():
        assert (
            flops(lambda: prepack_linear(weight, 15)(x)) == 2 * 15 * 7 * 11 == flops(lambda: x @ weight.t())
        )


def test_memory_of_a_beam_on_paper():
    bytes_of = {"ours": 39, "ours_greedy": 23, "beam_logits": 7, "weights": 10}
    told = {"memory_ratio": 49 / 40, "memory_ratio_without_weights": 1.3}
    assert memory_ratios(bytes_of) == pytest.approx(told)


def test_settings_of_the_decoder():
    assert config_of("transformer", ["layers=6"]).layers == 6
    assert config_of("transformer").hidden == 512 and config_of("transformer").layers == 3
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
            config_of(kind, [option])


def test_table_has_a_line_a_decoder():
    result = {
        "decoder": "up_down", "ours_per_s": 101.0, "textbook_per_s": 53.0, "ratio": 1.9, "peak_share": 0.37,
        "gflop": 47.0, "memory_mb": {"ours": 11.0, "textbook": 13.0}, "peak_gflops": 71.0, "threads": 2,
    }  # fmt: skip
    table = lines([result])
    assert table[1].split() == ["up_down", "101.0", "53.0", "1.90", "37", "%", "47.0", "11", "MB", "13", "MB"]


def test_an_unknown_decoder_is_one_sentence():
    done = tool("benchmark", "train", "--decoder", "lstm")
    assert done.code == 2 and done.err.count("\n") == 1 and "--decoder lstm: there are show_tell" in done.err
    done = tool("benchmark", "decode", "--decoder", "up_down")
    assert done.code == 2 and "--decoder of decode: one of soft_attention_lstm, transformer" in done.err
