"""The union of all data sets, and data sets outside the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from captioning.datasets import (
    DATASETS,
    CocoConfig,
    DatasetConfig,
    Flickr8kConfig,
    Flickr30kConfig,
    FolderConfig,
    KarpathyConfig,
    ShapesConfig,
    load,
)
from captioning.datasets.base import BaseDatasetConfig
from captioning.errors import UserError
from captioning.utils.validation import validate
from tests.helpers.datasets import write_file
from tests.helpers.running import tool


def test_kinds_and_unknown_keys() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(DatasetConfig)
    kinds = {
        "shapes": ShapesConfig,
        "flickr8k": Flickr8kConfig,
        "flickr30k": Flickr30kConfig,
        "karpathy": KarpathyConfig,
        "coco": CocoConfig,
        "folder": FolderConfig,
    }
    for kind, config in kinds.items():
        assert adapter.validate_python({"kind": kind, "root": "x"}) == config(root="x")
        for wrong in ({"rot": "x"}, {"max_bad": 1.5}, {"root": 3}):
            with pytest.raises(ValidationError):
                adapter.validate_python({"kind": kind, **wrong})
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "imagenet"})


OUTSIDE = """
from dataclasses import dataclass
from typing import ClassVar, Literal

from captioning.datasets.base import BaseDatasetConfig, Guide
from captioning.records import Collection, ImageRecord, Skip


@dataclass(frozen=True, kw_only=True)
class LinesConfig(BaseDatasetConfig):
    guide: ClassVar[Guide] = Guide(title="lines", layout="lines.txt", source="me", licence="mine")
    kind: Literal["outside_lines:LinesConfig"] = "outside_lines:LinesConfig"
    root: str = "data/lines"
    images: str | None = None

    def load(self) -> Collection:
        with open(self.root + "/lines.txt") as file:
            lines = file.read().splitlines()
        pairs = [line.split(": ") for line in lines]
        return Collection([ImageRecord(name, name, (text,), "train") for name, text in pairs], [Skip("x", "bad")])
"""


def test_data_set_outside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "outside_lines.py", OUTSIDE)
    write_file(tmp_path / "data/lines/lines.txt", "a.jpg: a dog\nb.jpg: a cat\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = "outside_lines:LinesConfig"
    with pytest.raises(UserError, match="code outside the captioning package"):
        validate(DatasetConfig, {"kind": kind}, where="config")
    config = validate(DatasetConfig, {"kind": kind, "max_bad": 0.5}, where="config", allow_code=True)
    assert [record.image_id for record in load(config).records] == ["a.jpg", "b.jpg"]
    with pytest.raises(UserError, match=r"1 of 5 images and captions are bad, more than max_bad = 0\.01"):
        load(validate(DatasetConfig, {"kind": kind}, where="config", allow_code=True))
    done = tool("prepare", kind, "--quick", "max_bad=0.5", "--min-count", "1", cwd=tmp_path)
    assert done.code == 0 and "skipped: 1 bad (first x)" in done.out, done.err
    assert "lines.txt" in tool("prepare", kind, "--needs", cwd=tmp_path).out


def test_every_data_set_has_a_guide_and_common_methods() -> None:
    for kind, config in DATASETS.items():
        assert issubclass(config, BaseDatasetConfig) and config.kind == kind
        text = config.guide.text("FOLDER")
        assert "Files in FOLDER/:" in text and "Licence:" in text
        assert all(f"--download {name}" in text for name in config.guide.downloads)
