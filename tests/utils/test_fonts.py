"""Figures with text that no font may have."""

import warnings

import pytest
from matplotlib.figure import Figure

from captioning.utils import fonts


def figure(text):
    made = Figure(figsize=(1, 1))
    made.subplots().set_title(text)
    return made


def test_one_sentence_for_all_letters_without_a_font(tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "FONTS", ())
    path = tmp_path / "a.png"
    with pytest.warns(UserWarning, match="no installed font has all letters of its text") as caught:
        fonts.save_png(figure("一只狗"), path)
    assert len(caught) == 1 and path.read_bytes().startswith(b"\x89PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fonts.save_png(figure("a dog ×2"), path)


def test_an_installed_font_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "FONTS", ("DejaVu Serif", "No Such Font"))
    made = figure("狗")
    with pytest.warns(UserWarning):
        fonts.save_png(made, tmp_path / "a.png")
    assert made.axes[0].title.get_fontfamily() == ["DejaVu Sans", "DejaVu Serif"]
