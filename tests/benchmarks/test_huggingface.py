"""Our Transformer against Hugging Face's with the same weights: logits and captions."""

import pytest
import torch

pytest.importorskip("transformers")
from captioning.benchmarks.huggingface import bart, generate, same_captions, twin
from captioning.generation import BeamConfig
from captioning.models.decoders import TransformerConfig, build
from captioning.tensors import Features

B, N, D, T, V = 5, 7, 11, 9, 101
CONFIG = TransformerConfig(hidden=26, feed_forward=17, heads=2, layers=3, max_length=T, dropout=0.0)


def model_and_features():
    """Our decoder in float64 with weights far from their initial values, and features."""
    torch.manual_seed(3)
    model = build(CONFIG, channels=D, vocabulary_size=V).double().eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return model, Features(torch.randn(B, N, D, dtype=torch.float64))


@torch.no_grad()
def test_teacher_forced_logits_agree():
    model, features = model_and_features()
    ids = torch.randint(V, (B, T))
    theirs = twin(model)(
        decoder_input_ids=ids, encoder_outputs=(model.project(features.regions),), use_cache=False
    ).logits
    ours = model.logits(model(ids[:, None], model.encode_memory(features)).hidden)[:, 0]
    assert ours.std() > 0.5
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("width", [1, 5])
def test_beam_search_finds_the_same_captions(width):
    model, features = model_and_features()
    assert same_captions(model, features, BeamConfig(width=width, min_length=T, max_length=T)) == 1


def test_encoder_layers_have_no_twin():
    with pytest.raises(ValueError, match="encoder_layers"):
        twin(build(TransformerConfig(hidden=6, heads=2, encoder_layers=1), channels=D, vocabulary_size=V))


def test_bart_generates_exactly_the_requested_words():
    model = bart(CONFIG, vocabulary_size=V, attention="sdpa")
    ids = generate(model, torch.randn(B, N, CONFIG.hidden), width=3, length=T)
    assert ids.shape == (B, T) and (ids > 3).all()
    assert sum(p.numel() for p in model.get_decoder().layers.parameters()) == sum(
        p.numel() for p in build(CONFIG, channels=D, vocabulary_size=V).layers.parameters()
    )
