"""Writing shards, and listing tars, hostile ones included."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest

from captioning import datasets
from captioning.datasets.prepare.shards import MAX_TEXT_BYTES, UnusableRecord, adopt, write
from captioning.datasets.shards import ShardsConfig
from captioning.errors import UserError
from captioning.images.reading import load_image
from tests.helpers.shards import IMAGES, PER_SHARD, Bomb, by_id, read_png, written


def test_tars_are_exchanged_with_webdataset(tmp_path, pictures):
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


def test_interrupted_writing_is_continued(tmp_path, pictures):
    whole = written(pictures, tmp_path / "whole")
    calls = []

    def failing(record):
        calls.append(record)
        if len(calls) == 2 * PER_SHARD + 2:
            raise KeyboardInterrupt
        return read_png(record)

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


def test_unusable_records_are_counted(tmp_path, pictures):
    def picky(record):
        if record.image_id == 1:
            raise UnusableRecord("truncated PNG")
        return read_png(record)

    write(pictures, tmp_path / "a", picky, holds={"kind": "images"}, max_bad=0.1)
    found = datasets.load(ShardsConfig(root=str(tmp_path / "a"), max_bad=0.1))
    assert len(found.records) == len(pictures) - 1
    assert [(skip.item, skip.reason) for skip in found.skipped] == [(pictures[1].path, "truncated PNG")]
    with pytest.raises(
        UserError, match=r"1 of 25 records are unusable, more than max_bad = 0\.01 allows .*truncated PNG"
    ):
        write(pictures, tmp_path / "b", picky, holds={"kind": "images"})


def member(
    name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data) if kind == tarfile.REGTYPE else 0
    return info, data


def test_a_list_of_words_is_no_list_of_captions(tmp_path):
    texts = (b'{"captions": ["a", "dog"]}', b'{"caption": [["a", "dog"]]}', b'{"caption": null}', b"{}")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number, text in enumerate(texts):
            for info, data in (member(f"{number}.jpg"), member(f"{number}.json", text)):
                tar.addfile(info, io.BytesIO(data))
    adopt(tmp_path)
    collection = ShardsConfig(root=str(tmp_path)).load()
    assert collection.records == []
    words = "caption is a list of words; join them with spaces"
    none = "image without captions"
    assert [skip.reason for skip in collection.skipped] == [
        words, none, words, none, "caption is null", none, none,
    ]  # fmt: skip


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
        ([*GOOD, member("b.1.png", b"x")], r"key of 'b\.1\.png' ends at its first dot, .* is '1\.png'; write"),
        ([*GOOD, member("a.jpg")], "'a.jpg' occurs twice"),
        ([*GOOD, member("b.jpg"), member("a.png")], "'a.png' is apart from its sample"),
        ([member("a.jpg"), member("a.png")], "sample 'a' has 2 images or features"),
        ([member("a.json", b"{}")], "sample 'a' has 0 images"),
        ([member("a.jpg"), member("a.json", b"[1]")], "'a.json': expected an object, found a list"),
        ([member("a.jpg"), member("a.json", b"[" * 100_000)], "'a.json': broken JSON: nested too deeply"),
        ([member("a.jpg"), member("a.json", b'{"split": [1]}')], "split a name"),
        ([member("a.jpg"), member("a.txt", b"\xff\xfe\xff")], "not UTF-8"),
        ([member("a.jpg"), member("a.txt", b"a" * (MAX_TEXT_BYTES + 1))], "larger than"),
        ([member("a.npy", b"PICKLE"), member("a.json", b"{}")], "of an unknown encoder"),
    ],
)  # fmt: skip
def test_hostile_tars_are_refused_without_writing_or_running_anything(tmp_path, members, message):
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


def test_cut_compressed_and_missing_tars_are_refused(tmp_path):
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
