"""Shards: written and read as they were, by webdataset too; hostile and damaged ones refused; trained on as files."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioning import datasets
from captioning.cli import prepare
from captioning.config import parse
from captioning.datasets import shards
from captioning.datasets.prepare.shards import MAX_TEXT_BYTES, UnusableRecord, adopt, write
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
from captioning.records import ImageRecord
from captioning.text.vocabulary import Vocabulary
from captioning.utils.file_slice import FileSlice, file_size, read_bytes
from captioning.utils.files import write_json
from captioning.utils.packed_strings import PackedStrings
from tests.helpers.running import tool

IMAGES = {"train": 17, "val": 5, "test": 3}
PER_SHARD = 7
PREPROCESSING = Preprocessing(size=20)


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


def as_they_are(record: ImageRecord) -> tuple[str, bytes]:
    return "png", Path(record.path).read_bytes()


def written(records: list[ImageRecord], root: Path, **options) -> list[ImageRecord]:
    write(records, root, as_they_are, holds={"kind": "images"}, **{"per_shard": PER_SHARD, **options})
    return datasets.load(ShardsConfig(root=str(root))).records


def by_id(records: list[ImageRecord]) -> dict:
    return {record.image_id: (record.captions, record.split, read_bytes(record.path)) for record in records}


def test_what_is_read_is_what_was_written(tmp_path, pictures):
    found = written(pictures, tmp_path)
    assert by_id(found) == by_id(pictures)
    tars = [
        f"{split}-00000{n}" for split, count in (("train", 3), ("val", 1), ("test", 1)) for n in range(count)
    ]
    files = ["index.json", *(f"{name}.tar" for name in tars), *(f"{name}.jsonl" for name in tars)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    for record, original in zip(found, pictures, strict=False):
        assert record.path.endswith(".png") and file_size(record.path) == len(read_bytes(record.path))
        assert file_size(original.path) == len(read_bytes(original.path))
    assert [r.image_id for r in found] != [
        r.image_id for r in pictures
    ]  # each shard is a sample of the whole
    again = written(pictures, tmp_path / "again")
    assert [r.image_id for r in again] == [r.image_id for r in found]
    for path in tmp_path.glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_webdataset_reads_them_and_its_own_are_read(tmp_path, pictures):
    webdataset = pytest.importorskip("webdataset", reason="the extra `shards` is not installed")
    expected = by_id(written(pictures, tmp_path / "ours"))
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted((tmp_path / "ours").glob("*.tar")):
            for sample in webdataset.WebDataset(str(path), shardshuffle=False):  # no .decode(): bytes
                said = json.loads(sample["json"])
                found[said["image_id"]] = tuple(said["captions"]), said["split"], sample["png"]
    assert found == expected
    (tmp_path / "theirs").mkdir()
    with webdataset.TarWriter(str(tmp_path / "theirs" / "val-0.tar")) as writer:
        for number, record in enumerate(pictures):
            text = (
                {"txt": "\n".join(record.captions)}
                if number % 2
                else {"json": {"caption": record.captions[0]}}
            )
            writer.write({"__key__": f"x{number}", "png": Path(record.path).read_bytes(), **text})
    adopt(tmp_path / "theirs")
    theirs = datasets.load(ShardsConfig(root=str(tmp_path / "theirs"))).records
    assert [r.image_id for r in theirs] == [f"val-0/x{number}" for number in range(len(pictures))]
    for number, (record, original) in enumerate(zip(theirs, pictures, strict=True)):
        assert record.split == "val"
        assert record.captions == (original.captions if number % 2 else original.captions[:1])
        assert np.array_equal(load_image(record.path), load_image(original.path))


def test_an_interrupted_writing_goes_on_behind_the_last_whole_shard(tmp_path, pictures):
    whole = written(pictures, tmp_path / "whole")
    calls = []

    def failing(record):
        calls.append(record)
        if len(calls) == 2 * PER_SHARD + 2:
            raise KeyboardInterrupt
        return as_they_are(record)

    root = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        write(pictures, root, failing, holds={"kind": "images"}, per_shard=PER_SHARD)
    assert sorted(path.name for path in root.glob("*.tar")) == ["train-000000.tar", "train-000001.tar"]
    with pytest.raises(
        UserError, match=r"part: its writing was interrupted; run captioning prepare shard again"
    ):
        datasets.load(ShardsConfig(root=str(root)))
    calls[:] = [None] * 100
    write(pictures, root, failing, holds={"kind": "images"}, per_shard=PER_SHARD)
    assert len(calls) - 100 == sum(IMAGES.values()) - 2 * PER_SHARD
    assert by_id(datasets.load(ShardsConfig(root=str(root))).records) == by_id(whole)
    for path in root.iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    with pytest.raises(UserError, match="contains shards of other records or settings"):
        written(pictures[1:], root)


def test_unfit_records_are_counted_and_too_many_stop_it(tmp_path, pictures):
    def picky(record):
        if record.image_id == 1:
            raise UnusableRecord("truncated PNG")
        return as_they_are(record)

    write(pictures, tmp_path / "a", picky, holds={"kind": "images"}, max_bad=0.1)
    found = datasets.load(ShardsConfig(root=str(tmp_path / "a"), max_bad=0.1))
    assert len(found.records) == len(pictures) - 1
    assert [(skip.item, skip.reason) for skip in found.skipped] == [(pictures[1].path, "truncated PNG")]
    with pytest.raises(
        UserError, match=r"1 of 25 records are unusable, more than max_bad = 0\.01 allows .*truncated PNG"
    ):
        write(pictures, tmp_path / "b", picky, holds={"kind": "images"})


class Bomb:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def member(
    name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data) if kind == tarfile.REGTYPE else 0
    return info, data


GOOD = [member("a.jpg"), member("a.json", b'{"captions": ["a dog"]}')]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*GOOD, member("../b.jpg")], r"entry 3: '\.\./b\.jpg' points outside the data root"),
        ([*GOOD, member("/tmp/b.jpg")], "entry 3: '/tmp/b.jpg' points outside"),
        ([*GOOD, member("b.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd")], "'b.jpg' is a link"),
        ([*GOOD, member("b.jpg", kind=tarfile.LNKTYPE, link="a.jpg")], "'b.jpg' is a link"),
        ([*GOOD, member("b.jpg", kind=tarfile.CHRTYPE)], "'b.jpg' is a device or pipe"),
        ([*GOOD, member("b.jpg", kind=tarfile.FIFOTYPE)], "'b.jpg' is a device or pipe"),
        ([*GOOD, member("b.jpg", kind=tarfile.GNUTYPE_SPARSE)], "'b.jpg' is a sparse file|a device or pipe|damaged"),
        ([*GOOD, member("a.pyd", b"PICKLE")], "entry 3: 'a.pyd' is not accepted; a shard may contain only bmp, "),
        ([*GOOD, member("a.pkl", b"PICKLE")], "'a.pkl' is not accepted"),
        ([*GOOD, member("a.pt", b"PICKLE")], "'a.pt' is not accepted"),
        ([*GOOD, member("a.jpg.pyd", b"PICKLE")], "'a.jpg.pyd' is not accepted"),
        ([*GOOD, member("b")], "'b' is not accepted"),
        ([*GOOD, member("a.jpg")], "'a.jpg' occurs twice"),
        ([*GOOD, member("b.jpg"), member("a.png")], "'a.png' is apart from its sample"),
        ([member("a.jpg"), member("a.png")], "sample 'a' has 2 images or features"),
        ([member("a.json", b"{}")], "sample 'a' has 0 images"),
        ([member("a.jpg"), member("a.json", b"[1]")], "'a.json': expected an object, found a list"),
        ([member("a.jpg"), member("a.json", b"[" * 100_000)], "'a.json': not UTF-8 text or broken JSON"),
        ([member("a.jpg"), member("a.json", b'{"split": [1]}')], "split a name"),
        ([member("a.jpg"), member("a.txt", b"\xff\xfe\xff")], "not UTF-8"),
        ([member("a.jpg"), member("a.txt", b"a" * (MAX_TEXT_BYTES + 1))], "larger than"),
        ([member("a.npy", b"PICKLE"), member("a.json", b"{}")], "of an unknown encoder"),
    ],
)  # fmt: skip
def test_hostile_tars_are_refused_by_name_and_nothing_runs_or_is_written(tmp_path, members, message):
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / "train-0.tar", "w") as tar:
        for info, data in members:
            data = pickle.dumps(Bomb(tmp_path / "ran")) if data == b"PICKLE" else data
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=message):
        adopt(root)
    assert [path.name for path in tmp_path.rglob("*")] == ["root", "train-0.tar"]


def test_tars_that_are_cut_or_compressed_or_none(tmp_path):
    with pytest.raises(UserError, match=r"contains no \.tar files"):
        adopt(tmp_path)
    path = tmp_path / "train-0.tar"
    with tarfile.open(path, "w") as tar:
        for info, _ in GOOD:
            info.size = 5000
            tar.addfile(info, io.BytesIO(b"{}" + b" " * 4998))
    whole = path.read_bytes()
    for content in (whole[:3000], whole[:7000], b"", b"<html>" * 1000, b"\x1f\x8b" + whole):
        path.write_bytes(content)
        with pytest.raises(
            UserError,
            match=r"train-0\.tar: (damaged, or not an uncompressed tar|.* is cut)|contains no image",
        ):
            adopt(tmp_path)


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


def test_places_outside_the_tar_are_refused(tmp_path, pictures):
    path = FileSlice.parse(written(pictures, tmp_path)[0].path)
    for other in (path._replace(size=10**12), path._replace(offset=10**12)):
        with pytest.raises(BadImage, match="is cut off; copy it again"):
            load_image(other.path)
    with pytest.raises(BadImage, match="cannot be read"):
        load_image(path._replace(container=str(tmp_path / "none.tar")).path)


def test_two_hundred_flips_and_cuts_are_found_when_they_are_read(tmp_path, pictures):
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


def test_batches_are_those_of_the_files_in_any_number_of_processes_and_from_any_place(tmp_path, pictures):
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
    with pytest.raises(UserError, match=r"not an array of numbers .*allow_pickle=False"):
        ShardFeatures([record.path])([0], 0)
    assert not (tmp_path / "ran").exists()


def test_the_tool_writes_lists_and_trains(tmp_path, pictures):
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
    told = []
    Experiment(parse(values, where="test"), log=told.append).train()
    assert "17 images" in told[0] and "in the shards of" in told[0]
