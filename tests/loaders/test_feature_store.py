"""The feature store: what the encoder gives is stored, whole or not at all, and never taken for another's."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from captioning.cli.main import main
from captioning.config import read_config
from captioning.errors import UserError
from captioning.experiment import Experiment
from captioning.images.preprocessing import Preprocessing, preprocess
from captioning.images.reading import load_image
from captioning.loaders import feature_store, feature_writer
from captioning.loaders.feature_store import FeatureStore
from captioning.loaders.feature_writer import build_store
from captioning.loaders.provenance import FeatureProvenance
from captioning.models.encoders import Encoder, SmallCNNConfig, TorchvisionConfig, build
from captioning.records import ImageId, ImageRecord
from captioning.text.vocabulary import Vocabulary
from captioning.utils import files

IMAGES, N, D = 23, 5 * 5, 24
PREPROCESSING = Preprocessing(size=20)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return build(SmallCNNConfig(channels=(16, D))).eval()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRecord]:
    """Images of all sizes, their ids numbers and names, in no order."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    records = []
    for number in range(IMAGES):
        width, height = generator.integers(11, 47, 2)
        path = folder / f"{number}.png"
        Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        image_id: ImageId = 1000 - number if number % 2 else f"name {number}.png"
        records.append(ImageRecord(image_id, str(path), ("a caption",), "train"))
    return records


def make(records: Sequence[ImageRecord], encoder: Encoder, folder: Path, **options: Any) -> FeatureStore:
    options = {"workers": 0, "batch_size": 4, "rows_per_shard": 8, **options}
    return build_store(records, encoder, options.pop("preprocessing", PREPROCESSING), folder, **options)


@torch.no_grad()
def encoded(encoder: Encoder, records: Sequence[ImageRecord], *, mirrored: bool = False) -> np.ndarray:
    """What the encoder gives, one image at a time."""
    rows = []
    for record in records:
        pixels = preprocess(load_image(record.path), PREPROCESSING)
        rows.append(encoder((pixels.flip(-1) if mirrored else pixels)[None]).regions[0].numpy())
    return np.stack(rows)


def ids(records: Sequence[ImageRecord]) -> list[ImageId]:
    return [record.image_id for record in records]


def debris(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_are_what_the_encoder_gives(
    tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord], dtype: str
):
    store = make(pictures, encoder, tmp_path / "s", dtype=dtype)
    assert len(store) == IMAGES and store.shape == (N, D) and store.views == 1 and not store.skipped
    assert sorted(path.name for path in (tmp_path / "s").glob("*.npy")) == [
        f"shard-0000{n}.npy" for n in range(3)
    ]
    asked = [pictures[i] for i in (17, 3, 3, 22, 0, 8)]
    rows = store.rows(ids(asked))
    assert rows.dtype == dtype and rows.shape == (6, N, D)
    expected = encoded(encoder, asked)
    np.testing.assert_allclose(rows, expected, atol=2e-3 if dtype == "float16" else 1e-5, rtol=1e-3)
    assert np.abs(expected[0] - expected[1]).max() > 20 * 2e-3  # images differ by more than the tolerance
    regions = store.features(ids(asked)).regions
    assert regions.dtype == torch.float32
    np.testing.assert_array_equal(regions.numpy(), rows.astype(np.float32))
    store.verify()
    assert not debris(tmp_path / "s")


def test_rows_are_the_callers_own(tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord]):
    store = make(pictures, encoder, tmp_path)
    rows = store.rows(ids(pictures[:2]))
    rows[:] = 7
    assert not (store.rows(ids(pictures[:2])) == 7).any()
    store.verify()


def test_two_views(tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord]):
    store = make(pictures, encoder, tmp_path, flip=True, dtype="float32")
    plain, mirrored = encoded(encoder, pictures), encoded(encoder, pictures, mirrored=True)
    views = np.arange(IMAGES) % 3 == 1
    expected = np.where(views[:, None, None], mirrored, plain)
    np.testing.assert_allclose(store.rows(ids(pictures), views=views.astype(int)), expected, atol=1e-5)
    np.testing.assert_allclose(store.rows(ids(pictures)), plain, atol=1e-5)
    assert np.abs(plain - mirrored).max() > 0.1
    for views in ([2], [-1]):
        with pytest.raises(UserError, match="holds 2 view"):
            store.rows(ids(pictures[:1]), views=views)


def test_one_view_has_no_mirrored_rows(tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord]):
    store = make(pictures, encoder, tmp_path)
    with pytest.raises(UserError, match=r"holds 1 view\(s\) of an image; build it with flip"):
        store.rows(ids(pictures[:2]), views=[0, 1])


def test_ids_are_told_apart_by_type(tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord]):
    twins = [replace(pictures[0], image_id=7), replace(pictures[1], image_id="7")]
    store = make(twins, encoder, tmp_path, dtype="float32")
    np.testing.assert_allclose(store.rows(["7", 7]), encoded(encoder, pictures[:2])[::-1], atol=1e-5)
    assert 7 in store and "7" in store and 8 not in store
    with pytest.raises(UserError, match=r"1 images are not in this feature store \(first \[8\]\)"):
        store.rows([7, 8])
    with pytest.raises(UserError, match="occurs twice"):
        make([pictures[0], pictures[0]], encoder, tmp_path / "other")


def test_the_result_does_not_depend_on_batches_shards_and_workers(
    tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord]
):
    one = make(pictures, encoder, tmp_path / "a", dtype="float32")
    two = make(pictures, encoder, tmp_path / "b", dtype="float32", batch_size=7, rows_per_shard=5, workers=2)
    np.testing.assert_allclose(one.rows(ids(pictures)), two.rows(ids(pictures)), atol=1e-5)


def test_the_encoder_is_left_as_it_was(tmp_path: Path, pictures: list[ImageRecord]):
    torch.manual_seed(0)
    encoder = build(TorchvisionConfig(name="mobilenet_v3_small", trainable_from=0)).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    store = make(pictures[:5], encoder, tmp_path, preprocessing=Preprocessing(size=32), dtype="float32")
    assert encoder.training and all(parameter.requires_grad for parameter in encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    # stored in eval mode: BatchNorm over the batch of two would give something else
    pixels = preprocess(load_image(pictures[0].path), Preprocessing(size=32))
    with torch.no_grad():
        expected = encoder.eval()(pixels[None]).regions.numpy()
    np.testing.assert_allclose(store.rows(ids(pictures[:1])), expected, atol=1e-4 * np.abs(expected).max())


# --- going on, and being killed ---------------------------------------------------------------


def test_only_what_is_missing_is_encoded(
    tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord], monkeypatch: pytest.MonkeyPatch
):
    make(pictures[:13], encoder, tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("*.npy")}
    loaded = []
    read = feature_writer.read_image
    monkeypatch.setattr(feature_writer, "read_image", lambda path: loaded.append(path) or read(path))
    store = make(pictures, encoder, tmp_path)
    assert loaded == [record.path for record in pictures[13:]]
    assert all((tmp_path / name).read_bytes() == content for name, content in kept.items())
    np.testing.assert_allclose(store.rows(ids(pictures)), encoded(encoder, pictures), atol=2e-3, rtol=1e-3)
    loaded.clear()
    make(pictures, encoder, tmp_path)
    make(pictures[:3], encoder, tmp_path)
    assert not loaded and len(FeatureStore.open(tmp_path)) == IMAGES


class Killed(BaseException):
    """What no `except Exception` holds up, as a signal."""


FAULTS: list[tuple[str, Callable[[], tuple[Any, str]]]] = [
    ("encoding", lambda: (feature_writer._Writer, "encode_batch")),
    ("checking a shard", lambda: (feature_writer, "sha256")),
    ("writing the index", lambda: (feature_writer, "write_json")),
    ("renaming", lambda: (os, "replace")),
    ("syncing", lambda: (os, "fsync")),
]


@pytest.mark.parametrize(("where", "place"), FAULTS, ids=[name for name, _ in FAULTS])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_a_fault_at_any_moment_loses_nothing_that_was_done(
    tmp_path: Path,
    encoder: Encoder,
    pictures: list[ImageRecord],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    place: Callable[[], tuple[Any, str]],
    late: bool,
):
    whole = make(pictures, encoder, tmp_path / "whole").rows(ids(pictures))
    holder, name = place()
    real = getattr(holder, name)
    for moment in range(100):
        folder = tmp_path / f"{moment}"
        calls = 0

        def faulty(*args: Any, _moment: int = moment, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls <= _moment:
                return real(*args, **kwargs)
            if late:
                real(*args, **kwargs)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(holder, name, faulty)
            try:
                make(pictures, encoder, folder)
            except Killed:
                pass
            else:
                assert moment >= 3, f"{where} happened {moment} times only"
                return
        if (folder / "index.json").exists():
            partial = FeatureStore.open(folder)
            partial.verify()
            there = [number for number, record in enumerate(pictures) if record.image_id in partial]
            assert there
            np.testing.assert_array_equal(partial.rows(ids([pictures[n] for n in there])), whole[there])
        (folder / ".shard-00009.npy.0badcafe.part").touch()  # a kill leaves such a file
        store = make(pictures, encoder, folder)
        np.testing.assert_array_equal(store.rows(ids(pictures)), whole)
        store.verify()
        assert not debris(folder)
    raise AssertionError("never came to an end")


BUILD = """
import sys, torch
from captioning.models.encoders import SmallCNNConfig, build
from captioning.loaders.feature_writer import build_store
from captioning.images.preprocessing import Preprocessing
from captioning.records import ImageRecord

torch.manual_seed(0)
encoder = build(SmallCNNConfig(channels=(16, 24)))
records = [ImageRecord(n, sys.argv[2 + n % (len(sys.argv) - 2)], (), "") for n in range(3000)]
build_store(records, encoder, Preprocessing(size=20), sys.argv[1], workers=1, batch_size=4, rows_per_shard=8)
"""


def test_a_killed_build_goes_on(tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord]):
    paths = [record.path for record in pictures]
    process = subprocess.Popen([sys.executable, "-c", BUILD, tmp_path, *paths], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("shard*"))) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    second = subprocess.Popen(
        [sys.executable, "-c", BUILD, tmp_path, *paths], stderr=subprocess.PIPE, text=True
    )
    assert second.stderr
    assert f"process {process.pid} on " in (line := second.stderr.readline()) and "waiting for it" in line
    before = len(FeatureStore.open(tmp_path))
    assert process.poll() is None and second.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    while len(FeatureStore.open(tmp_path)) < min(before + 64, 3000):  # it goes on by itself
        assert second.poll() in (None, 0) and time.monotonic() < deadline
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    second.wait()
    partial = FeatureStore.open(tmp_path)
    partial.verify()
    assert 32 <= len(partial) < 3000
    records = [ImageRecord(n, paths[n % len(paths)], (), "") for n in range(len(partial) + 5)]
    store = make(records, encoder, tmp_path)  # the lock went with the process
    assert len(store) == len(records) and not debris(tmp_path)
    expected = encoded(encoder, pictures)[np.arange(len(records)) % len(paths)]
    np.testing.assert_allclose(store.rows(ids(records)), expected, atol=2e-3, rtol=1e-3)


# --- other features, other files --------------------------------------------------------------


def test_features_of_another_encoder_are_refused_by_name(
    tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord]
):
    make(pictures, encoder, tmp_path)
    origin = FeatureProvenance.of(encoder, PREPROCESSING)
    assert FeatureStore.open(tmp_path, expect=origin).fingerprint == origin.fingerprint
    FeatureStore.open(tmp_path, expect=origin.fingerprint)
    torch.manual_seed(1)
    weights = build(SmallCNNConfig(channels=(16, D)))
    config = build(SmallCNNConfig(channels=(16, D), grid=3))
    for other, preprocessing, named in (
        (weights, PREPROCESSING, f"encoder weights {encoder.fingerprint()} / {weights.fingerprint()}"),
        (config, PREPROCESSING, "encoder.grid None / 3"),
        (encoder, replace(PREPROCESSING, size=28), "preprocessing.size 20 / 28"),
        (encoder, replace(PREPROCESSING, mean=(0, 0, 0)), "preprocessing.mean"),
    ):
        wanted = FeatureProvenance.of(other, preprocessing)
        for refused in (
            lambda o=other, p=preprocessing: make(pictures, o, tmp_path, preprocessing=p),
            lambda w=wanted: FeatureStore.open(tmp_path, expect=w),
        ):
            with pytest.raises(UserError) as caught:
                refused()
            message = str(caught.value)
            assert "features of another encoder" in message and named in message
            assert origin.fingerprint in message and wanted.fingerprint in message
    with pytest.raises(UserError, match=f"stored {origin.fingerprint}, expected 0123"):
        FeatureStore.open(tmp_path, expect="0123")
    for option, value in (("dtype", "float32"), ("flip", True)):
        with pytest.raises(UserError, match="requested is"):
            make(pictures, encoder, tmp_path, **{option: value})


def test_damage_is_found(tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord]):
    store = make(pictures, encoder, tmp_path)
    before = store.rows(ids(pictures))
    shard = tmp_path / "shard-00001.npy"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"1 of 3 shards are damaged \(shard-00001\.npy\); delete"):
        FeatureStore.open(tmp_path).verify()
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"shard-00001\.npy: \d+ bytes, expected \d+; run"):
        FeatureStore.open(tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-00001\.npy: missing; run"):
        FeatureStore.open(tmp_path)
    store = make(pictures, encoder, tmp_path)  # mends it
    np.testing.assert_array_equal(store.rows(ids(pictures)), before)
    store.verify()


def test_what_is_no_store_is_refused(tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord]):
    with pytest.raises(UserError, match="not a feature store"):
        FeatureStore.open(tmp_path / "nothing")
    index = tmp_path / "index.json"
    for content, reason in (
        ("{", "broken JSON at line 1"),
        ("[]", "not in the form expected here"),
        ('{"shards": [], "format": 99}', "format 99, expected 2"),
    ):
        index.write_text(content)
        for refused in (
            lambda: FeatureStore.open(tmp_path),
            lambda: make(pictures, encoder, tmp_path),
        ):
            with pytest.raises(UserError, match=reason):
                refused()


def test_an_image_that_changed_is_noticed(tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord]):
    records = []
    for record in pictures[:5]:
        path = shutil.copy(record.path, tmp_path)
        records.append(replace(record, path=path))
    make(records, encoder, tmp_path / "s")
    Image.new("RGB", (33, 5)).save(records[3].path)
    with pytest.raises(UserError, match=r"3\.png: changed since its features were stored"):
        make(records, encoder, tmp_path / "s")
    os.unlink(records[3].path)
    assert len(make(records, encoder, tmp_path / "s")) == 5  # without the files the store still serves


def test_a_changed_file_of_the_same_size_is_noticed_and_a_copy_is_read_once(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "image.bmp"
    Image.new("RGB", (33, 5), "red").save(path)
    records = [ImageRecord(1, str(path), ("a caption",), "train")]
    contents = make(records, encoder, tmp_path / "s").contents([1])
    assert contents == [(path.stat().st_size, zlib.crc32(path.read_bytes()))]
    read = []
    real = feature_writer.content_crc
    monkeypatch.setattr(feature_writer, "content_crc", lambda path: read.append(path) or real(path))
    os.utime(path, (1, 1))
    for _ in range(2):
        assert make(records, encoder, tmp_path / "s").contents([1]) == contents
    assert read == [str(path)]
    Image.new("RGB", (33, 5), "blue").save(path)
    with pytest.raises(UserError, match=r"image\.bmp: changed since its features were stored \(CRC-32"):
        make(records, encoder, tmp_path / "s")
    index = json.loads((tmp_path / "s" / "index.json").read_text())
    for shard in index["shards"]:
        del shard["crcs"], shard["mtimes_ns"]  # as earlier versions wrote it
    (tmp_path / "s" / "index.json").write_text(json.dumps(index))
    assert make(records, encoder, tmp_path / "s").contents([1]) == [(path.stat().st_size, None)]


# --- bad images, bad numbers ------------------------------------------------------------------


def test_bad_images_are_counted_and_listed(tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord]):
    bad = tmp_path / "bad.jpg"
    bad.touch()
    records = [*pictures[:9], ImageRecord("bad", str(bad), (), "train"), *pictures[9:]]
    folder = tmp_path / "s"
    with pytest.raises(
        UserError, match=r"1 images are unreadable, more than max_bad .*empty file.*skipped\.csv"
    ):
        make(records, encoder, folder)
    assert len(FeatureStore.open(folder)) >= 8  # what was done is kept
    store = make(records, encoder, folder, max_bad=0.05)
    assert len(store) == IMAGES and "bad" not in store
    assert [(skip.item, skip.reason) for skip in store.skipped] == [(str(bad), "not an image (empty file)")]
    with open(folder / "skipped.csv", newline="") as file:
        assert list(csv.reader(file)) == [["item", "reason"], [str(bad), "not an image (empty file)"]]
    np.testing.assert_allclose(store.rows(ids(pictures)), encoded(encoder, pictures), atol=2e-3, rtol=1e-3)
    store.verify()
    with pytest.raises(UserError, match="not in this feature store"):
        store.rows(["bad"])
    shutil.copy(pictures[0].path, bad)  # mended
    mended = make(records, encoder, folder)
    np.testing.assert_array_equal(mended.rows(["bad"]), store.rows(ids(pictures[:1])))
    assert not mended.skipped and not (folder / "skipped.csv").exists()


def test_only_bad_images(tmp_path: Path, encoder: Encoder):
    with pytest.raises(UserError, match=r"no image can be read .*no such file"):
        make([ImageRecord(1, str(tmp_path / "x.jpg"), (), "")], encoder, tmp_path / "s", max_bad=1.0)


@pytest.mark.parametrize("factor", [1e6, float("nan")])
def test_features_that_do_not_fit_are_refused(tmp_path: Path, pictures: list[ImageRecord], factor: float):
    torch.manual_seed(0)
    encoder = build(SmallCNNConfig(channels=(16,)))
    with torch.no_grad():
        encoder.position_embedding.weight.mul_(factor)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="are not finite in float16"):
        make(pictures, encoder, tmp_path)
    if factor == 1e6:
        assert np.isfinite(make(pictures, encoder, tmp_path, dtype="float32").rows(ids(pictures))).all()


# --- in other processes, and on disk ----------------------------------------------------------


def test_a_store_travels_to_another_process(tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord]):
    store = make(pictures, encoder, tmp_path)
    rows = store.rows(ids(pictures))
    content = pickle.dumps(store)
    assert len(content) < 20_000  # no rows in it
    np.testing.assert_array_equal(pickle.loads(content).rows(ids(pictures)), rows)


def test_the_files_are_plain(tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord]):
    """Read without our code: the index says where an image's row is."""
    store = make(pictures, encoder, tmp_path, flip=True)
    index = json.loads((tmp_path / "index.json").read_text())
    assert (
        index["fingerprint"] == store.fingerprint and index["provenance"]["weights"] == encoder.fingerprint()
    )
    wanted = pictures[13].image_id
    (shard,) = [shard for shard in index["shards"] if wanted in shard["ids"]]
    rows = np.load(tmp_path / shard["file"], allow_pickle=False)
    assert rows.shape == (8, 2, N, D)
    np.testing.assert_array_equal(rows[shard["ids"].index(wanted), 1], store.rows([wanted], views=[1])[0])


# --- the tool ---------------------------------------------------------------------------------


@pytest.fixture
def tool(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the tool in this process: (exit code, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", list(sys.argv))
        with pytest.raises(SystemExit) as caught:
            main(["features", *map(str, arguments)])
        return int(caught.value.code or 0), *capsys.readouterr()

    return call


def test_the_tool_on_a_folder(
    tmp_path: Path, pictures: list[ImageRecord], tool: Callable[..., tuple[int, str, str]]
):
    images, out = Path(pictures[0].path).parent, tmp_path / "out"
    settings = (
        "--encoder",
        "mobilenet_v3_small",
        "--weights",
        tmp_path / "w.pth",
        "--size",
        "32",
        "--workers",
        "0",
    )
    torch.manual_seed(0)
    network = models.get_model("mobilenet_v3_small", weights=None)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    code, printed, errors = tool("--images", images, "--out", out, *settings, "--flip")
    assert code == 0 and "encoding features" in errors
    assert (
        "23 images and their mirror images, 1 regions of 576 channels in float16: 0.00 GB, about " in errors
    )
    assert "23 images, as they are and mirrored, 1 regions of 576 channels in float16" in printed
    assert str(out) in printed
    store = FeatureStore.open(out)
    pixels = preprocess(load_image(images / "17.png"), Preprocessing(size=32)).flip(-1)
    expected = network.eval().features(pixels[None]).detach().numpy()[0, :, 0, 0]
    np.testing.assert_allclose(store.rows(["17.png"], views=[1])[0, 0], expected, atol=1e-3, rtol=1e-3)
    assert tool("--verify", out)[1].startswith("verified: 23 images")
    with open(out / "shard-00000.npy", "rb+") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\x55\x55")
    code, _, errors = tool("--verify", out)
    assert code == 2 and "1 of 1 shards are damaged" in errors and errors.count("\n") == 1
    for arguments, message in (
        (("--images", tmp_path / "nowhere", "--out", out, *settings), "no such folder of images"),
        (
            ("--images", images, "--out", out, "--encoder", "resnet", "--weights", "none"),
            "the closest are resnet",
        ),
        (("--images", images, "--out", out), "--images needs --encoder and --out"),
        ((), "give one of"),
        (("--verify", tmp_path), "not a feature store"),
    ):
        code, _, errors = tool(*arguments)
        assert code == 2 and message in errors


def test_the_tool_takes_any_encoder_with_its_own_preprocessing(
    tmp_path: Path, pictures: list[ImageRecord], tool: Callable[..., tuple[int, str, str]]
):
    folder, out = ("--images", Path(pictures[0].path).parent), ("--out", tmp_path / "out")
    spec = "kind=timm,name=test_vit,layer=0"
    code, printed, errors = tool(
        *folder, *out, "--encoder", spec, "--weights", "none", "--grid", "5", "--workers", "0"
    )
    assert code == 0, errors
    assert "25 regions of 64 channels" in printed
    preprocessing = FeatureStore.open(tmp_path / "out").provenance.preprocessing
    assert (preprocessing["size"], preprocessing["crop"]) == (160, 0.95)
    for spec, message in (
        ("kind=tim,name=test_vit", "encoder.kind: unknown kind 'tim'; did you mean timm?"),
        ("kind=timm,test_vit", "write KEY=VALUE"),
        ("kind=timm,name=test_vit,laye=0", "encoder.laye: unknown key; did you mean encoder.layer?"),
    ):
        code, _, errors = tool(*folder, "--out", tmp_path / "other", "--encoder", spec)
        assert code == 2 and message in errors and errors.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_the_tool_fills_the_store_that_training_opens(
    tmp_path: Path, pictures: list[ImageRecord], tool: Callable[..., tuple[int, str, str]]
):
    data = tmp_path / "data"
    shutil.copytree(Path(pictures[0].path).parent, data)
    lines = ["file_name,caption,split"]
    lines += [f"{n}.png,a picture of noise,{'val' if n % 5 == 0 else 'train'}" for n in range(IMAGES)]
    (data / "captions.csv").write_text("\n".join(lines) + "\n")
    config = tmp_path / "x.yaml"
    config.write_text(f"""
name: x
runs: {tmp_path / "runs"}
dataset: {{kind: folder, root: {data}}}
encoder: {{kind: torchvision, name: mobilenet_v3_small}}
preprocessing: {{size: 32}}
vocabulary: {{min_count: 1}}
search: {{kind: beam, width: 2}}
features: {{root: {tmp_path / "features"}}}
""")
    code, printed, errors = tool(config, "features.flip=true")
    assert code == 0 and "23 images, as they are and mirrored" in printed, errors
    assert "encoding features: image 0/23" in errors
    (folder,) = (tmp_path / "features").iterdir()
    written = (folder / "index.json").stat().st_mtime_ns
    experiment = Experiment(read_config(config, ["features.flip=true"]), log=lambda _: None)
    records = experiment.load_dataset().records
    captioner = experiment.build_captioner(Vocabulary.build(["a picture of noise"], min_count=1))
    source = experiment.image_source(captioner.encoder, records)
    assert len(source.readable(records)) == IMAGES and str(folder) in source.location
    assert (folder / "index.json").stat().st_mtime_ns == written
    code, _, errors = tool(config, "encoder.trainable_from=3")
    assert code == 2 and "the encoder is trained" in errors


def test_the_tools_help_does_not_wait_for_torch():
    check = (
        "import sys\n"
        "from captioning.cli.main import main\n"
        "try:\n    main(['features', '--help'])\n"
        "except SystemExit:\n    assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0 and "examples:" in done.stdout


def test_two_hundred_flips_and_cuts_are_found_when_the_store_is_opened(
    tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord]
):
    make(pictures, encoder, tmp_path)
    time.sleep(0.15)  # files so new are read at every opening
    FeatureStore.open(tmp_path)  # and from here on believed for as long as nobody touches them
    assert (tmp_path / ".verified.json").is_file()
    shards = sorted(tmp_path.glob("*.npy"))
    generator = np.random.default_rng(5)
    found = 0
    for _ in range(200):
        shard = shards[generator.integers(len(shards))]
        times, content = shard.stat(), shard.read_bytes()
        at = int(generator.integers(len(content)))
        flipped = content[:at] + bytes([content[at] ^ 1 << int(generator.integers(8))]) + content[at + 1 :]
        shard.write_bytes(content[:at] if generator.random() < 0.5 else flipped)
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))  # a copy that keeps the time hides nothing
        try:
            FeatureStore.open(tmp_path)
        except UserError as error:
            found += shard.name in str(error)
        shard.write_bytes(content)
    assert found == 200
    FeatureStore.open(tmp_path)


def test_an_opened_store_is_read_through_once(
    tmp_path: Path, encoder: Encoder, pictures: list[ImageRecord], monkeypatch: pytest.MonkeyPatch
):
    make(pictures, encoder, tmp_path)
    (tmp_path / ".verified.json").unlink(missing_ok=True)
    time.sleep(0.15)
    read: list[Path] = []
    monkeypatch.setattr(feature_store, "sha256", lambda path: read.append(path) or files.sha256(path))
    for _ in range(3):
        store = FeatureStore.open(tmp_path)
    assert sorted(read) == sorted(tmp_path.glob("*.npy"))
    store.verify()
    assert len(read) == 2 * len(list(tmp_path.glob("*.npy")))
