"""Model folders: saved and opened again, and the sentences for folders that cannot be opened."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torchvision.models import get_model

from captioning.captioner.captioner import FORMAT, Captioner
from captioning.captioner.predict import generate_captions
from captioning.errors import UserError
from captioning.models.encoders import TorchvisionConfig, torchvision_cnn
from captioning.utils.files import write_manifest
from tests.helpers.models import save_tiny_model, tiny_captioner


def test_an_opened_model_generates_the_captions_of_the_saved_one(tmp_path):
    saved = tiny_captioner("lstm")
    saved.save(tmp_path / "model", card="# Card\n")
    opened = Captioner.open(tmp_path / "model")
    images = torch.randn(5, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    assert generate_captions(opened, images, range(5)) == generate_captions(saved, images, range(5))
    assert (opened.config, opened.vocabulary) == (saved.config, saved.vocabulary)
    assert not opened.training


@pytest.mark.parametrize("version", [FORMAT - 1, FORMAT + 1, None])
def test_other_formats_are_refused_in_one_sentence(tmp_path, version):
    path = save_tiny_model(tmp_path / "model") / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config.pop("format")
    path.write_text(yaml.safe_dump(config | ({"format": version} if version else {})), encoding="utf-8")
    (tmp_path / "model" / "manifest.json").unlink()
    write_manifest(tmp_path / "model")
    with pytest.raises(UserError) as raised:
        Captioner.open(tmp_path / "model")
    message = str(raised.value)
    assert f"format {version}, but this version reads format {FORMAT}" in message and "\n" not in message


def test_a_folder_without_a_manifest_is_no_model(tmp_path):
    with pytest.raises(UserError, match="not a model folder"):
        Captioner.open(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda weight: weight.to(torch.int8),
            "is of type torch.int8, but the architecture needs torch.float32",
        ),
        (lambda weight: weight > 0, "is of type torch.bool"),
        (lambda weight: weight.to(torch.complex64), "is of type torch.complex64"),
        (lambda weight: weight / 0, "holds values that are not finite"),
        (lambda weight: weight[:1].clone(), r"has shape \[1"),
    ],
)
def test_weights_that_would_caption_wrongly_are_refused(tmp_path, edit, message):
    folder = save_tiny_model(tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    state["decoder.embedding.weight"] = edit(state["decoder.embedding.weight"])
    save_file(state, folder / "model.safetensors")
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    with pytest.raises(UserError, match=rf"model\.safetensors: weight decoder\.embedding\.weight {message}"):
        Captioner.open(folder)


def test_weights_of_another_precision_are_the_same_model(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    half = {
        name: weight.bfloat16()
        for name, weight in load_file(folder / "model.safetensors").items()
        if weight.is_floating_point()
    }
    save_file({**load_file(folder / "model.safetensors"), **half}, folder / "model.safetensors")
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    assert {weight.dtype for weight in Captioner.open(folder).parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["config.yaml", "vocabulary.json", "model.safetensors"])
def test_a_manifest_lists_every_file_that_is_read(tmp_path, name):
    folder = save_tiny_model(tmp_path / "model")
    entries = json.loads((folder / "manifest.json").read_text())
    del entries[name]
    (folder / "manifest.json").write_text(json.dumps(entries))
    with pytest.raises(
        UserError, match=rf"manifest\.json: does not list {name}; copy the whole folder again"
    ):
        Captioner.open(folder)


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"config.yaml": 3}'])
def test_a_manifest_without_files_is_refused(tmp_path, content):
    folder = save_tiny_model(tmp_path / "model")
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: (does not list|expected file names)"):
        Captioner.open(folder)


def test_a_vocabulary_of_another_model_is_refused(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    path = folder / "vocabulary.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"dog"', '"horse"'), encoding="utf-8")
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    with pytest.raises(UserError, match="the model was trained with"):
        Captioner.open(folder)


@pytest.fixture
def squeezenet_weights(monkeypatch):
    """Stands in for the download of torchvision's weights; the seed can be changed."""
    seed = [0]

    def weights(name):
        with torch.random.fork_rng():
            torch.manual_seed(seed[0])
            return get_model(name).state_dict()

    monkeypatch.setattr(torchvision_cnn, "_default_weights", weights)
    return seed


def test_a_compact_folder_has_no_encoder_and_the_same_captions(tmp_path, squeezenet_weights):
    saved = tiny_captioner("lstm", encoder=TorchvisionConfig(name="squeezenet1_1", grid=3, weights="default"))
    saved.save(tmp_path / "whole", card="# Card\n")
    saved.save(tmp_path / "compact", card="# Card\n", compact=True)
    whole, compact = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "compact"))
    parameters = sum(parameter.numel() for parameter in saved.decoder.parameters())
    assert 2 * parameters < compact < 2.5 * parameters + 2000 < whole
    opened = Captioner.open(tmp_path / "compact")
    images = torch.randn(5, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    expected = generate_captions(saved, images, range(5))
    for prediction, other in zip(generate_captions(opened, images, range(5)), expected, strict=True):
        assert prediction.caption == other.caption and prediction.score == pytest.approx(
            other.score, abs=0.01
        )
    assert next(opened.parameters()).dtype == torch.float32

    squeezenet_weights[0] = 1
    with pytest.raises(UserError, match="the encoder's weights are"):
        Captioner.open(tmp_path / "compact")


@pytest.mark.parametrize("encoder", ["small", "frozen"])
def test_a_compact_folder_needs_a_frozen_encoder_with_default_weights(tmp_path, encoder):
    with pytest.raises(UserError, match=r"encoder.weights=default"):
        tiny_captioner("lstm", encoder=encoder).save(tmp_path / "model", card="", compact=True)
    assert not (tmp_path / "model").exists()
