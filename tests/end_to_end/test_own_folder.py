"""A folder of one's own photographs: `captioning prepare` and `captioning train` agree on what can be trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioning.errors import UserError
from captioning.images.reading import load_image
from tests.helpers.running import tool
from tests.helpers.training import experiment, tiny_settings


def photograph(path: Path, seed: int, *, uniform_rows: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels[32 - uniform_rows :] = 99
    Image.fromarray(pixels).save(path, "BMP")


def folder(root: Path, splits: str) -> Path:
    """One photograph for each of the space-separated splits; `-` stands for none."""
    rows = []
    for number, split in enumerate(splits.split()):
        photograph(root / "images" / f"{number}.bmp", number)
        rows.append(f"{number}.bmp,a dog runs,{'' if split == '-' else split}")
    (root / "captions.csv").write_text("\n".join(["file_name,caption,split", *rows]))
    return root


def settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    values = tiny_settings(tmp_path, "run", epochs=1)
    values["dataset"] = {"kind": "folder", "root": str(tmp_path / "photos")}
    return {**values, **changes}


def lose(*names: str):
    return lambda root: [(root / "images" / name).write_bytes(b"<html>") for name in names]


def repeat(name: str, copy: str):
    return lambda root: (root / "images" / copy).write_bytes((root / "images" / name).read_bytes())


LAYOUTS = {
    "train val": (lambda root: None, None),
    "- - - - - - - -": (lambda root: None, None),
    "Train Train Validation test": (lambda root: None, None),
    "train train train": (lambda root: None, None),
    "train": (lambda root: None, "needs two images or more"),
    "test test test": (lambda root: None, "no images in the split train"),
    "train train dev": (repeat("0.bmp", "2.bmp"), "leakage: 1 images are in two splits by content"),
    "train train val test": (repeat("1.bmp", "3.bmp"), "leakage: 1 images are in two splits by content"),
    "train train train val": (lose("3.bmp"), "1 of the 1 images of the split 'val' are unusable"),
}


@pytest.mark.parametrize("splits", LAYOUTS)
def test_prepare_and_train_agree(tmp_path: Path, splits: str) -> None:
    """Both accept the folder, or both refuse it with the same sentence."""
    damage, message = LAYOUTS[splits]
    root = folder(tmp_path / "photos", splits)
    damage(root)
    arguments = ["folder", "--root", root, "--min-count", "1", "--out", tmp_path / "report", "max_bad=0.4"]
    prepared = tool("prepare", *arguments)
    lines: list[str] = []
    values = settings(tmp_path)
    values["dataset"]["max_bad"] = 0.4
    run = experiment(values, lines.append)
    if message is None:
        assert prepared.code == 0, prepared.err
        run.train()
        notes = [line for line in prepared.out.splitlines() if line.startswith("note: ")]
        assert notes == [line for line in lines if line.startswith("note: ")]
        assert bool(notes) == (splits != "train val")
        log = (run.folder / "train.log").read_text()
        assert all(note in log for note in notes)
    else:
        assert prepared.code == 2 and message in prepared.err
        with pytest.raises(UserError, match=message) as caught:
            run.train()
        listed = f" (all are in {tmp_path / 'report' / 'report.json'})"
        assert prepared.err == f"error: {caught.value}\n".replace(
            "\n", listed * ("leakage" in message) + "\n"
        )


@pytest.mark.parametrize("stored", [True, False])
def test_photographs_with_a_uniform_part_are_used_and_named(tmp_path: Path, stored: bool) -> None:
    root = folder(tmp_path / "photos", "train train train val")
    photograph(root / "images" / "1.bmp", 7, uniform_rows=16)
    values = settings(tmp_path)
    if stored:  # a frozen encoder, whose features are computed once
        values["encoder"] = {"kind": "torchvision", "name": "squeezenet1_1", "grid": 2, "weights": "none"}
    values["features"] = {"root": str(tmp_path / "features")}
    lines: list[str] = []
    run = experiment(values, lines.append)
    run.train()
    (noted,) = (line for line in lines if "with a note" in line)
    reason = "lower 50 % is one colour; the file may have lost its end"
    path = root / "images" / "1.bmp"
    assert noted == (
        f"1 images are used with a note (first {path}: {reason}); {run.folder / 'image_notes.csv'} lists them"
    )
    assert (run.folder / "image_notes.csv").read_text() == f"item,reason\n{path},{reason}\n"
    done = tool("evaluate", run.folder, "--split", "train")
    assert f"1 images are used with a note (first {path}: {reason})\n" in done.err


@pytest.mark.parametrize("workers", [0, 2])
def test_a_photograph_that_is_lost_during_training_is_named(tmp_path: Path, workers: int) -> None:
    root = folder(tmp_path / "photos", "train train train val")
    values = settings(tmp_path)
    values["training"]["workers"] = workers
    lost = root / "images" / "1.bmp"

    def log(line: str) -> None:
        if "images for training" in line or " captions for training" in line:
            load_image(lost)
            lost.unlink()

    with pytest.raises(UserError) as caught:
        experiment(values, log).train()
    assert str(caught.value) == (
        f"{lost}: no such file; the image was readable before: restore it, then go on with --resume"
    )
