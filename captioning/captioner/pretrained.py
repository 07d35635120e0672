"""Models by name: the trained ones that come with the package, and the model folders of runs."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import NamedTuple

from captioning.errors import UserError
from captioning.utils.files import read_text

FOLDER = Path(__file__).resolve().parents[1] / "pretrained"
DEFAULT = "flickr8k-lstm"
"""The model that captions where none is named."""


class Pretrained(NamedTuple):
    """A model that comes with the package."""

    name: str
    folder: Path
    description: str  # the first paragraph of its model card

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())


def pretrained_models() -> list[Pretrained]:
    """The models that come with the package, by name."""
    folders = sorted(manifest.parent for manifest in FOLDER.glob("*/manifest.json"))
    return [Pretrained(folder.name, folder, _first_paragraph(folder / "README.md")) for folder in folders]


def find_model(name: str | os.PathLike[str]) -> Path:
    """The model folder that `name` means: a model folder, a run (its `model/`), or a pretrained model's name.

    A folder of that name is preferred to a pretrained model.

    Raises:
        UserError: it is none of them.
    """
    path = Path(name)
    if (path / "manifest.json").is_file():
        return path
    if (path / "model").is_dir() or (path / ".model.old").is_dir():  # the latter: see `files.recover_folder`
        return path / "model"
    if path.is_dir():
        raise UserError(f"{path}: holds no model (no manifest.json, no model/); give a finished run")
    models = {model.name: model.folder for model in pretrained_models()}
    if str(name) in models:
        return models[str(name)]
    near = difflib.get_close_matches(str(name), models, n=1)
    hint = (
        f"did you mean {near[0]}?"
        if near
        else "give a run (runs/NAME), a model folder or a name that `captioning models` lists"
    )
    raise UserError(f"{path}: no such folder; {hint}")


def _first_paragraph(card: Path) -> str:
    """The first paragraph below the title, as one line."""
    text = read_text(card)
    body = text.partition("\n# ")[2] or text.removeprefix("# ")
    paragraphs = [" ".join(paragraph.split()) for paragraph in body.split("\n\n")[1:]]
    return paragraphs[0] if paragraphs else ""
