"""Regions that others computed: read, padded, refused; a model trained, evaluated and asked for a photo."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from captioning.captioner.captioner import Captioner
from captioning.config import parse
from captioning.errors import UserError
from captioning.experiment import Experiment
from captioning.models.encoders import RegionsConfig, build
from captioning.models.encoders.region_files import RegionFiles, pad_regions, read_regions
from captioning.records import ImageRecord
from tests.helpers.running import tool

D = 7


@pytest.mark.parametrize("name", ["features", "feat", "x"])
def test_npz_by_any_of_its_names_boxes_beside(tmp_path, name):
    regions = np.random.default_rng(0).standard_normal((5, D)).astype(np.float32)
    np.savez_compressed(tmp_path / "3.npz", **{name: regions, "boxes": np.ones((5, 4))})
    np.testing.assert_array_equal(
        read_regions(str(tmp_path / "3.npz"), channels=D, max_regions=None), regions
    )
    np.testing.assert_array_equal(
        read_regions(str(tmp_path / "3.npz"), channels=D, max_regions=2), regions[:2]
    )


def test_npy_half_precision_and_grids(tmp_path):
    grid = np.random.default_rng(0).standard_normal((2, 3, D)).astype(np.float16)
    np.save(tmp_path / "a.npy", grid)
    read = read_regions(str(tmp_path / "a.npy"), channels=D, max_regions=None)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, grid.reshape(6, D).astype(np.float32))


class Evil:
    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_objects_are_refused_and_nothing_runs(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    array = np.array([Evil()], dtype=object)
    np.save("a.npy", array, allow_pickle=True) if suffix == "npy" else np.savez("a.npz", features=array)
    with pytest.raises(UserError, match="refused as unsafe: holds Python objects"):
        read_regions(f"a.{suffix}", channels=D, max_regions=None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((3, D + 1)),
            r"expected regions of 7 numbers \(encoder.channels\), found an array \(3, 8\)",
        ),
        (np.zeros((0, D)), "found an array"),
        (np.zeros(D), "found an array"),
        (np.zeros((2, D), bool), "expected numbers, found bool"),
        (np.full((2, D), np.nan), "not finite"),
    ],
)
def test_what_is_not_regions_is_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=message):
        read_regions(str(tmp_path / "a.npy"), channels=D, max_regions=None)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_cut_file_is_told_in_one_sentence(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    array = np.random.default_rng(0).standard_normal((11, D))
    np.save(path, array) if suffix == "npy" else np.savez_compressed(path, feat=array)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match="damaged") as caught:
        read_regions(str(path), channels=D, max_regions=None)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match="no such file of regions"):
        read_regions(str(tmp_path / "a.npy"), channels=D, max_regions=None)
    np.savez(tmp_path / "b.npz", pooled=np.zeros((1, D)))
    with pytest.raises(UserError, match="holds pooled; store the regions under features"):
        read_regions(str(tmp_path / "b.npz"), channels=D, max_regions=None)
    (tmp_path / "empty").mkdir()
    for folder, message in (("none", "cannot be read"), ("empty", r"holds no \.npz or \.npy")):
        with pytest.raises(UserError, match=message):
            RegionFiles(RegionsConfig(folder=str(tmp_path / folder)))


def test_files_are_found_by_id_and_by_the_images_name(tmp_path):
    for name in ("42.npz", "COCO_000043.npy", "c.jpg.npz", "42.npy"):
        (tmp_path / name).write_bytes(b"")
    files = RegionFiles(RegionsConfig(folder=str(tmp_path)))
    for image_id, path, found in (
        (42, "x/COCO_000042.jpg", "42.npz"),
        (43, "x/COCO_000043.jpg", "COCO_000043.npy"),
        ("c.jpg", "x/c.jpg", "c.jpg.npz"),
    ):
        assert files.find(ImageRecord(image_id, path, (), "val")) == str(tmp_path / found)
    assert files.find(ImageRecord(4, "x/d.jpg", (), "val")) is None


def test_padding_says_where_there_is_a_region():
    first, second = np.ones((2, D), np.float32), np.full((5, D), 2, np.float32)
    regions, valid = pad_regions([first, second])
    assert regions.shape == (2, 5, D) and valid.tolist() == [[True] * 2 + [False] * 3, [True] * 5]
    np.testing.assert_array_equal(regions[0, :2], first)
    assert not regions[0, 2:].any()


def test_pixels_are_refused():
    encoder = build(RegionsConfig(folder="f", channels=D))
    with pytest.raises(UserError, match="precomputed regions"):
        encoder(torch.zeros(1, 3, 8, 8))


def test_a_model_is_trained_evaluated_and_asked_for_a_photo(tmp_path):
    values = {
        "name": "run", "runs": str(tmp_path / "runs"), "device": "cpu",
        "dataset": {"kind": "shapes", "root": str(tmp_path / "shapes"), "train": 12, "val": 4, "test": 3,
                    "unseen": 2, "size": 32, "max_bad": 0.1},
        "encoder": {"kind": "regions", "folder": str(tmp_path / "regions"), "channels": D},
        "vocabulary": {"min_count": 1, "max_length": 30},
        "decoder": {"kind": "transformer", "hidden": 8, "feed_forward": 8, "heads": 2, "layers": 1},
        "search": {"kind": "beam", "width": 2, "max_length": 8},
        "training": {"epochs": 1, "batch_size": 5, "ema_decay": 0.9, "schedule": {"kind": "constant"}},
        "tracking": {"mode": "disabled"},
    }  # fmt: skip
    experiment = Experiment(parse(values, where="test"), log=lambda _: None)
    records = experiment.load_dataset().records
    (tmp_path / "regions").mkdir()
    generator = np.random.default_rng(0)
    for number, record in enumerate(records):
        array = generator.standard_normal((1 + number % 5, D)).astype(np.float32)
        np.savez(tmp_path / "regions" / f"{record.image_id}.npz", features=array)
    without = next(record for record in records if record.split == "train")
    (tmp_path / "regions" / f"{without.image_id}.npz").unlink()
    experiment.train()
    listed = (experiment.folder / "skipped_images.csv").read_text()
    tried = ", ".join(
        name + suffix
        for name in (str(without.image_id), Path(without.path).stem)
        for suffix in (".npz", ".npy")
    )
    reason = f"no file of its regions in {tmp_path / 'regions'} (tried {tried})"
    assert listed == f'item,reason\n{without.image_id},"{reason}"\n'

    captioner = Captioner.open(experiment.folder / "model")
    kept = [record for record in records if record.split == "val"]
    source = experiment.image_source(captioner.encoder, kept)
    images, before = source.images(kept, training=False), list(source.contents(kept))
    os.utime(tmp_path / "regions" / f"{kept[1].image_id}.npz", (1, 1))
    assert [a == b for a, b in zip(source.contents(kept), before, strict=True)].count(False) == 1
    together = captioner.decoder.encode_memory(images(range(len(kept)), 0))
    for number in range(len(kept)):  # padding changes nothing
        alone = captioner.decoder.encode_memory(images([number], 0))
        words = torch.tensor([[[1, 5, 6]]])
        one = captioner.decoder(words, alone).hidden[0]
        assert_close(captioner.decoder(words.expand(len(kept), -1, -1), together).hidden[number], one)

    done = tool("evaluate", str(experiment.folder), "--json")
    assert done.code == 0, done.err
    photo = records[0].path
    done = tool("caption", photo, "--model", str(experiment.folder))
    assert done.code == 2 and "precomputed regions" in done.err and done.err.count("\n") == 1


def test_regions_are_not_mirrored(tmp_path):
    values = {"name": "run", "encoder": {"kind": "regions", "folder": "f"}, "features": {"flip": True}}
    with pytest.raises(UserError, match="cannot be mirrored"):
        parse(values, where="test")
