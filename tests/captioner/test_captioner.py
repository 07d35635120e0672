"""Model folders: saved and opened again, and the sentences for folders that cannot be opened."""

import pytest
import torch
import yaml

from captioning.captioner.captioner import FORMAT, Captioner
from captioning.captioner.predict import generate_captions
from captioning.errors import UserError
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


def test_a_vocabulary_of_another_model_is_refused(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    path = folder / "vocabulary.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"dog"', '"horse"'), encoding="utf-8")
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    with pytest.raises(UserError, match="the model was trained with"):
        Captioner.open(folder)
