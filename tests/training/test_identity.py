"""A checkpoint is resumed only with the settings and the data that it was made from."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioning.errors import UserError
from tests.helpers.training import checkpoint_weights, experiment, tiny_settings

SPLITS = {"train": 6, "val": 2}
FROZEN = {"kind": "torchvision", "name": "squeezenet1_1", "grid": 2, "weights": "none"}


def write_data(folder: Path) -> Path:
    """Six training and two validation images (BMP: their size does not depend on their content)."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for split, count in SPLITS.items():
        for number in range(count):
            name = f"{split}{number}.bmp"
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / name)
            rows += [[name, f"a dog runs {'up ' * number}", split], [name, "the cat sleeps", split]]
    write_rows(folder, [*rows, ["train0.bmp", "", "train"]])
    return folder


def read_rows(folder: Path) -> list[list[str]]:
    with open(folder / "captions.csv", newline="") as file:
        return list(csv.reader(file))[1:]


def write_rows(folder: Path, rows: list[list[str]]) -> None:
    with open(folder / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "caption", "split"], *rows])


def run_on(data: Path, *, frozen: bool = False, **changes):
    folder = data.parent
    values = tiny_settings(folder, "run", epochs=1)
    values["dataset"] = {"kind": "folder", "root": str(data), "max_bad": 0.5}
    values["features"] = {"root": str(folder / "features")}
    values["encoder"] = FROZEN if frozen else values["encoder"]
    for section, change in changes.items():
        values[section] |= change
    return experiment(values)


@pytest.fixture(scope="module", params=[False, True], ids=["pixels", "store"])
def original(request, tmp_path_factory):
    """The folder of a run on image files or on a feature store, and of its data; whether it uses a store."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_data(folder / "data")
    run_on(data, frozen=request.param).train()
    return folder, request.param


@pytest.fixture
def trained(original, tmp_path):
    """As `original`, restored after the test: the paths are among the settings, so that a copy would be refused."""
    shutil.copytree(original[0], tmp_path / "kept")
    yield original
    shutil.rmtree(original[0])
    shutil.copytree(tmp_path / "kept", original[0])


def renamed_word(rows):
    """And an empty caption more, which a run lists in skipped.csv."""
    renamed = [[name, caption.replace("dog", "zebra"), split] for name, caption, split in rows]
    return [*renamed, ["train1.bmp", "", "train"]]


def reordered_words(rows):
    """As many words as before; the most frequent one is another."""
    return [[name, caption.replace("sleeps", "the the"), split] for name, caption, split in rows]


def exchanged_captions(rows):
    rows[0][1], rows[10][1] = rows[10][1], rows[0][1]
    return rows


def exchanged_validation_captions(rows):
    rows[-2][1], rows[-4][1] = rows[-4][1], "the cat runs"
    return rows


def fewer_images(rows):
    return rows[:8] + rows[10:]


WORDS, CAPTIONS, IMAGES = "words of the vocabulary", "captions of train", "images of train"


@pytest.mark.parametrize(
    ("change", "parts", "unchanged"),
    [
        (renamed_word, [WORDS, CAPTIONS], [IMAGES]),
        (reordered_words, [WORDS, CAPTIONS], [IMAGES]),
        (exchanged_captions, [CAPTIONS], [WORDS, IMAGES, "captions of val"]),
        (exchanged_validation_captions, ["captions of val"], [WORDS, IMAGES, CAPTIONS]),
        (fewer_images, [IMAGES, CAPTIONS], ["captions of val"]),
    ],
)
def test_other_captions_are_refused_before_a_file_is_touched(trained, change, parts, unchanged):
    folder, frozen = trained
    write_rows(folder / "data", change(read_rows(folder / "data")))
    message = refused(folder, frozen)
    for part in parts:
        assert f"{part} " in message
    for part in unchanged:
        assert f"{part} " not in message
    assert ("start=" in message) == (WORDS not in parts)
    assert message.count(", now ") >= len(parts) and "name=ANOTHER" in message


def test_replaced_pixels_are_refused(trained):
    folder, frozen = trained
    path = folder / "data" / "train3.bmp"
    size = path.stat().st_size
    Image.new("RGB", (32, 32), "red").save(path)
    assert path.stat().st_size == size
    if frozen:
        assert "train3.bmp: changed since its features were stored (CRC-32" in refused(folder, frozen)
        shutil.rmtree(folder / "features")
    message = refused(folder, frozen)
    assert "readable images of train, by content 6 (fingerprint " in message and "captions" not in message


def test_copied_images_are_the_same_images(trained):
    folder, frozen = trained
    before = checkpoint_weights(run_on(folder / "data", frozen=frozen))
    for path in (folder / "data").glob("*.bmp"):
        os.utime(path, (1, 1))
    run = run_on(folder / "data", frozen=frozen)
    assert run.train(resume=True).epoch == 1
    assert checkpoint_weights(run) == before


def test_another_setting_is_named_with_both_values(trained):
    folder, frozen = trained
    message = refused(folder, frozen, training={"learning_rate": 0.125}, search={"width": 3})
    assert "training.learning_rate 0.0005, now 0.125" in message and "search.width 2, now 3" in message
    assert f"start={folder / 'runs' / 'run'}" in message


def refused(folder: Path, frozen: bool, **changes) -> str:
    """The message with which a resumed run is refused; no file of the run has changed."""
    before = state(folder / "runs")
    assert any(path.name == "skipped.csv" for path in before)
    with pytest.raises(UserError) as error:
        run_on(folder / "data", frozen=frozen, **changes).train(resume=True)
    assert state(folder / "runs") == before
    return str(error.value)


def state(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
