"""`captioning models`: the list, a card, and packing."""

import sys

from captioning.captioner import pretrained
from captioning.cli import models
from tests.helpers.models import save_tiny_model
from tests.helpers.running import tool


def test_the_list_names_size_and_description(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["captioning models"])
    assert models.main() == 0
    assert "no models" in capsys.readouterr().out
    save_tiny_model(tmp_path / pretrained.DEFAULT)
    assert models.main() == 0
    out = capsys.readouterr().out
    size = sum(path.stat().st_size for path in (tmp_path / pretrained.DEFAULT).iterdir()) / 1e6
    assert f"{pretrained.DEFAULT}  ({size:.1f} MB, the default of `captioning caption`)\n" in out


def test_a_models_card_is_printed(tmp_path):
    done = tool("models", save_tiny_model(tmp_path / "runs" / "one" / "model").parent, cwd=tmp_path)
    assert done.code == 0 and "# A model for tests" in done.out


def test_a_trained_encoder_cannot_be_packed(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    done = tool("models", model, "--pack", tmp_path / "packed", cwd=tmp_path)
    assert done.code == 2 and len(done.err.splitlines()) == 1 and "encoder.weights=default" in done.err
    done = tool("models", model, "--pack", model, cwd=tmp_path)
    assert done.code == 2 and "exists already" in done.err


def test_packing_needs_a_model(tmp_path):
    done = tool("models", "--pack", tmp_path / "packed", cwd=tmp_path)
    assert done.code == 2 and "--pack needs a MODEL" in done.err
