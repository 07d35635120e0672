"""Reading shards: records, damage, features, and training from them."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from captioning import datasets
from captioning.cli import prepare
from captioning.config import parse
from captioning.datasets import shards
from captioning.datasets.prepare.shards import write
from captioning.datasets.shards import ShardsConfig
from captioning.errors import UserError
from captioning.experiment import Experiment
from captioning.images.preprocessing import Preprocessing
from captioning.images.reading import BadImage, load_image
from captioning.loaders.batches import TrainingBatches, bucketed_batches, loader
from captioning.loaders.captions import EncodedCaptions
from captioning.loaders.feature_writer import build_store
from captioning.loaders.images import PixelImages, RandomMirroring, ShardFeatures, StoredImages
from captioning.models.encoders import SmallCNNConfig, build
from captioning.text.vocabulary import Vocabulary
from captioning.utils.file_slice import FileSlice, FileState, content_crc, read_bytes
from captioning.utils.files import write_json
from captioning.utils.packed_strings import PackedStrings
from tests.helpers.running import tool
from tests.helpers.shards import Bomb, by_id, written

PREPROCESSING = Preprocessing(size=20)


def test_records_are_read_as_they_were_written(tmp_path, pictures):
    found = written(pictures, tmp_path)
    assert by_id(found) == by_id(pictures)
    tars = [
        f"{split}-00000{n}" for split, count in (("train", 3), ("val", 1), ("test", 1)) for n in range(count)
    ]
    files = [".lock", "index.json", *(f"{name}.tar" for name in tars), *(f"{name}.jsonl" for name in tars)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    for record, original in zip(found, pictures, strict=False):
        assert record.path.endswith(".png")
        for path in (record.path, original.path):
            assert FileState.of(path).size == len(read_bytes(path))
            assert content_crc(path) == zlib.crc32(read_bytes(path))
    assert [r.image_id for r in found] != [
        r.image_id for r in pictures
    ]  # each shard is a sample of the whole
    again = written(pictures, tmp_path / "again")
    assert [r.image_id for r in again] == [r.image_id for r in found]
    for path in tmp_path.glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../x.tar"}, "points outside the data root"),
        ({"listing": "/etc/passwd"}, "points outside the data root"),
        ({"bytes": 3}, r"\d+ bytes, expected 3; copy the shard again"),
        ({"file": "train-000007.tar"}, "missing; copy the shard again"),
        ({"listing_sha256": "0"}, "missing or damaged"),
    ],
)
def test_hostile_indexes_are_refused(tmp_path, pictures, change, message):
    written(pictures, tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    index["shards"][0] |= change
    write_json(tmp_path / "index.json", index)
    with pytest.raises(UserError, match=message):
        datasets.load(ShardsConfig(root=str(tmp_path)))


def test_positions_outside_the_tar_are_refused(tmp_path, pictures):
    path = FileSlice.parse(written(pictures, tmp_path)[0].path)
    for other in (path._replace(size=10**12), path._replace(offset=10**12)):
        with pytest.raises(BadImage, match="is cut off; copy it again"):
            load_image(other.path)
    with pytest.raises(BadImage, match="cannot be read"):
        load_image(path._replace(container=str(tmp_path / "none.tar")).path)


def test_flipped_bits_and_cuts_are_found_on_reading(tmp_path, pictures):
    """Each in a byte that training reads; the index knows of the others (`verify`)."""
    records = written(pictures, tmp_path)
    generator = np.random.default_rng(3)
    found = 0
    for _ in range(200):
        one = FileSlice.parse(records[generator.integers(len(records))].path)
        tar = Path(one.container)
        content = tar.read_bytes()
        if generator.random() < 0.5:
            at = one.offset + int(generator.integers(one.size))
            tar.write_bytes(
                content[:at] + bytes([content[at] ^ 1 << int(generator.integers(8))]) + content[at + 1 :]
            )
        else:
            tar.write_bytes(content[: generator.integers(one.offset + one.size)])
        try:
            load_image(one.path)
        except BadImage as error:
            found += "damaged (CRC-32)" in str(error) or "is cut" in str(error)
        tar.write_bytes(content)
    assert found == 200
    shards.verify(tmp_path)
    tar.write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match="1 of 5 shards are damaged"):
        shards.verify(tmp_path)


def test_batches_equal_those_of_files_for_any_workers_and_start(tmp_path, pictures):
    vocabulary = Vocabulary.build((c for r in pictures for c in r.captions), min_count=1)
    found = [record for record in written(pictures, tmp_path) if record.split == "train"]
    files = {record.image_id: record for record in pictures}
    made = []
    for records, workers in (([files[r.image_id] for r in found], 0), (found, 0), (found, 2)):
        captions = EncodedCaptions.from_records(records, vocabulary, max_length=9)
        images = PixelImages([r.path for r in records], PREPROCESSING, augmentation=None, seed=0)
        ids = PackedStrings(r.image_id for r in records)
        dataset = TrainingBatches(ids, captions, images, captions_per_image=2, pad=0, seed=0, epoch=3)
        batches = bucketed_batches(captions, size=3, seed=0, epoch=3)
        skipped = 2 if workers else 0  # a resumed run asks for what is left
        got = loader(dataset, batches[skipped:], workers=workers, pin_memory=False)
        made.append([None] * skipped + list(got))
    for other in made[1:]:
        for one, two in zip(made[0], other, strict=True):
            if two is not None:
                assert one.image_ids == two.image_ids
                assert torch.equal(one.ids, two.ids) and torch.equal(one.images, two.images)


def test_stored_features_in_shards(tmp_path, pictures):
    torch.manual_seed(0)
    store = build_store(
        pictures, build(SmallCNNConfig(channels=(16, 24))).eval(), PREPROCESSING, tmp_path / "store",
        workers=0, flip=True,
    )  # fmt: skip
    payload, holds = prepare.read_features(str(tmp_path / "store"))
    write(pictures, tmp_path / "shards", payload, holds=holds)
    found = datasets.load(ShardsConfig(root=str(tmp_path / "shards"))).records
    numbers = np.array([11, 2, 23, 5])
    for mirroring in (RandomMirroring(None), RandomMirroring(3)):
        ours = ShardFeatures([r.path for r in found], mirroring)
        stored = StoredImages(store, [r.image_id for r in found], mirroring)
        for epoch in (0, 1):
            assert torch.equal(ours(numbers, epoch).regions, stored(numbers, epoch).regions)


def test_arrays_of_objects_are_refused(tmp_path, pictures):
    file = io.BytesIO()
    np.save(file, np.array([Bomb(tmp_path / "ran")], object), allow_pickle=True)
    write(
        pictures,
        tmp_path / "s",
        lambda record: ("npy", file.getvalue()),
        holds={"kind": "features", "views": 1},
    )
    record = datasets.load(ShardsConfig(root=str(tmp_path / "s"))).records[0]
    with pytest.raises(UserError, match=r"cannot be read as an array .*allow_pickle=False"):
        ShardFeatures([record.path])([0], 0)
    assert not (tmp_path / "ran").exists()


def test_commands_write_list_and_train(tmp_path, pictures):
    root = Path(pictures[0].path).parent.parent
    lines = [
        {"file_name": Path(r.path).name, "caption": list(r.captions), "split": r.split} for r in pictures
    ]
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    shard = lambda *more: tool("prepare", "shard", *more)  # noqa: E731
    done = shard("folder", "--root", root, "--to", tmp_path / "s", "--per-shard", "7")
    assert done.code == 0, done.err
    assert "5 shards of images, 0.000 GB: train 17, val 5, test 3" in done.out
    assert shard("--adopt", tmp_path / "s").out == done.out
    report = tool(
        "prepare", "shards", "--root", tmp_path / "s", "--out", tmp_path / "report", "--min-count", "1"
    )
    assert report.code == 0 and "25 opened, 0 broken" in report.out, report.out + report.err
    for mistake in ((), ("folder",), ("folder", "--adopt", "x"), ("folder", "--to", "x", "--per-shard", "0")):
        assert shard(*mistake).code == 2
    values = {
        "name": "x", "runs": str(tmp_path / "runs"), "dataset": {"kind": "shards", "root": str(tmp_path / "s")},
        "encoder": {"kind": "small", "channels": [8, 12]}, "preprocessing": {"size": 20}, "device": "cpu",
        "features": {"root": str(tmp_path / "features")}, "vocabulary": {"min_count": 1},
        "decoder": {"kind": "soft_attention_lstm", "embedding": 11, "hidden": 13, "attention_size": 7},
        "training": {"epochs": 1, "batch_size": 5, "captions_per_image": 2, "workers": 0},
        "tracking": {"mode": "disabled"},
    }  # fmt: skip
    lines: list[str] = []
    Experiment(parse(values, where="test"), log=lines.append).train()
    (sources,) = (line for line in lines if "in the shards of" in line)
    assert "17 images" in sources
