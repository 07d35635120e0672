"""Our Transformer is the one that Hugging Face builds from the same weights, in numbers and in searches."""

import pytest
import torch

pytest.importorskip("transformers")
from captioning.benchmarks.huggingface import bart, generate, same_captions, twin
from captioning.generation import BeamConfig
from captioning.models.decoders import TransformerConfig, build
from captioning.tensors import Features

B, N, D, T, V = 5, 7, 11, 9, 101
CONFIG = TransformerConfig(hidden=26, feed_forward=17, heads=2, layers=3, max_length=T, dropout=0.0)


def scene():
    """Our decoder in float64, far from its start, and features."""
    torch.manual_seed(3)
    model = build(CONFIG, channels=D, vocabulary_size=V).double().eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return model, Features(torch.randn(B, N, D, dtype=torch.float64))


@torch.no_grad()
def test_teacher_forced_logits_are_those_of_hugging_face():
    model, features = scene()
    words = torch.randint(V, (B, T))
    theirs = twin(model)(
        decoder_input_ids=words, encoder_outputs=(model.project(features.regions),), use_cache=False
    ).logits
    ours = model.logits(model(words[:, None], model.encode_memory(features)).hidden)[:, 0]
    assert ours.std() > 0.5
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("width", [1, 5])
def test_beams_find_the_captions_of_hugging_face(width):
    model, features = scene()
    assert same_captions(model, features, BeamConfig(width=width, min_length=T, max_length=T)) == 1


def test_layers_over_regions_have_no_twin():
    with pytest.raises(ValueError, match="encoder_layers"):
        twin(build(TransformerConfig(hidden=6, heads=2, encoder_layers=1), channels=D, vocabulary_size=V))


def test_bart_says_exactly_as_many_words_as_asked_for():
    model = bart(CONFIG, vocabulary_size=V, attention="sdpa")
    words = generate(model, torch.randn(B, N, CONFIG.hidden), width=3, length=T)
    assert words.shape == (B, T) and (words > 3).all()
    assert sum(p.numel() for p in model.get_decoder().layers.parameters()) == sum(
        p.numel() for p in build(CONFIG, channels=D, vocabulary_size=V).layers.parameters()
    )
