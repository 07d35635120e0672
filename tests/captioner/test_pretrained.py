"""Models by name: folders, runs and the models of the package."""

import pytest

from captioning.captioner import pretrained
from captioning.captioner.pretrained import find_model, pretrained_models
from captioning.errors import UserError
from tests.helpers.models import save_tiny_model


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of shipped models, with two in it."""
    folder = tmp_path / "shipped"
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    for name, card in (
        ("one-lstm", "# One\n\nAn LSTM,\non shapes.\n\nMore."),
        ("b", "---\na: 1\n---\n# B\n\nText.\n"),
    ):
        save_tiny_model(folder / name)
        (folder / name / "README.md").write_text(card, encoding="utf-8")
    return folder


def test_shipped_models_have_names_sizes_and_the_first_paragraph_of_their_card(shipped):
    models = {model.name: model for model in pretrained_models()}
    assert {name: model.description for name, model in models.items()} == {
        "b": "Text.",
        "one-lstm": "An LSTM, on shapes.",
    }
    assert models["b"].bytes == sum(path.stat().st_size for path in (shipped / "b").iterdir())


def test_a_name_is_a_folder_a_run_or_a_shipped_model(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model("b") == shipped / "b"
    model = save_tiny_model(tmp_path / "runs" / "mine" / "model")
    assert find_model(tmp_path / "runs" / "mine") == find_model(model) == model
    save_tiny_model(tmp_path / "b")  # a folder of one's own is preferred
    assert find_model("b").resolve() == tmp_path / "b"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one-lstmm", "did you mean one-lstm?"),
        ("elsewhere/b", "give a run"),
        ("shipped", "holds no model"),
        ("", "holds no model"),
    ],
)
def test_other_names_are_refused(shipped, tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        find_model(name)
