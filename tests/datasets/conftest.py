"""Fixtures for the tests of data sets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioning.records import ImageRecord
from tests.helpers.shards import IMAGES


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths of a test are below its own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRecord]:
    """Images of three splits, their ids numbers and names with dots and slashes."""
    folder = tmp_path_factory.mktemp("pictures") / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    records = []
    for split, count in IMAGES.items():
        for number in range(count):
            path = folder / f"{split}.{number}.png"
            size = (*generator.integers(11, 47, 2), 3)
            Image.fromarray(generator.integers(0, 256, size, np.uint8)).save(path)
            image_id = len(records) if number % 2 else f"{split}/a.b {number}.png"
            captions = tuple(f"a dog runs {'far ' * k}no {number}" for k in range(1 + number % 3))
            records.append(ImageRecord(image_id, str(path), captions, split))
    return records
