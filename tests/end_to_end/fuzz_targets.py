"""Every kind of file, and of text on the command line, that the package reads: an example of it and its reader."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from captioning import datasets
from captioning.captioner import pretrained
from captioning.captioner.captioner import FILES, Captioner
from captioning.captioner.predict import generate_captions
from captioning.cli.main import main
from captioning.comparison import systems
from captioning.comparison.study import read_study
from captioning.config import parse, read_config
from captioning.datasets import (
    CocoConfig,
    DatasetConfig,
    Flickr8kConfig,
    Flickr30kConfig,
    FolderConfig,
    KarpathyConfig,
    ShapesConfig,
    ShardsConfig,
)
from captioning.datasets.base import RemoteFile
from captioning.datasets.prepare import archives, download, shards
from captioning.datasets.references import read_references
from captioning.errors import UserError
from captioning.generation import BeamConfig
from captioning.generation.overrides import override_search
from captioning.images.reading import read_image
from captioning.loaders.feature_store import FeatureStore
from captioning.loaders.feature_writer import build_store
from captioning.loaders.images import ShardFeatures
from captioning.metrics import ReferenceCounts, get_metric
from captioning.metrics.coco_names import read_scores
from captioning.metrics.document_frequencies import DocumentFrequencies
from captioning.models.encoders import SmallCNNConfig
from captioning.models.encoders.region_files import read_regions
from captioning.models.encoders.weights import match_weights, read_weights
from captioning.records import ImageRecord, write_predictions
from captioning.text.vocabulary import Vocabulary
from captioning.training import checkpoint
from captioning.training.checkpoint import Progress, TrainState
from captioning.training.config import TrainingConfig
from captioning.training.identity import Fingerprint, Identity
from captioning.training.tracking import Tracker, TrackingConfig
from captioning.utils import locks
from captioning.utils.file_slice import FileSlice, read_bytes
from captioning.utils.files import sha256, write_manifest
from captioning.utils.paths import shipped_configs
from captioning.utils.plugins import load_object
from captioning.utils.validation import find_kind
from tests.helpers.datasets import write_coco, write_file, write_json_file
from tests.helpers.models import PREPROCESSING, save_tiny_model, tiny_captioner
from tests.helpers.training import tiny_settings

IDENTITY = Identity({"seed": 0}, {"captions of train": Fingerprint(3, "0123456789abcdef")})


class Target(NamedTuple):
    """A file that is mutated, and what reads it.

    Attributes:
        read: reads it as the package does. Raises UserError where it refuses.
        tree: the form of a file whose content is a tree of plain values.
        repair: make the checksums beside the file agree with it, so that its content is what is refused.
    """

    file: Path
    read: Callable[[], Any]
    tree: Literal["json", "yaml", "lines"] | None = None
    repair: Callable[[], Any] = lambda: None

    @property
    def value(self) -> Any:
        """The content of a file with a tree."""
        text = self.file.read_text(encoding="utf-8")
        if self.tree == "lines":
            return [json.loads(line) for line in text.splitlines()]
        return json.loads(text) if self.tree == "json" else yaml.safe_load(text)


def run_command(*arguments: str | Path) -> None:
    """Run a command in this process. Raises UserError with what it prints if it refuses its input."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch("sys.argv"):
        try:
            main([os.fspath(argument) for argument in arguments])
        except SystemExit as end:
            errors = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
            assert end.code in (0, 2) and len(errors) == (end.code == 2), err.getvalue()
            if end.code == 2:
                assert err.getvalue().endswith(f"{errors[0]}\n"), err.getvalue()
                raise UserError(errors[0]) from None


def drawn_images(folder: Path, count: int = 4) -> list[ImageRecord]:
    """Small images with two captions each."""
    folder.mkdir(parents=True, exist_ok=True)
    dice = np.random.default_rng(0)
    records = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.fromarray(dice.integers(0, 256, (24, 24, 3), np.uint8)).save(path)
        captions = ("a red dog", "a dog on grass")
        records.append(ImageRecord(number, str(path), captions, "val" if number == 2 else "train"))
    return records


def load(config: DatasetConfig) -> None:
    """Load a data set in which anything may be unusable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets.load(config)


# --- settings and text of the command line


def config_file(folder: Path) -> Target:
    values = yaml.safe_load((shipped_configs() / "flickr8k_self_critical.yaml").read_text(encoding="utf-8"))
    values |= {"encoder": {"kind": "small"}, "augmentation": {"flip": 0.5, "scale": [0.5, 1.0]}}
    file = write_file(folder / "c.yaml", yaml.safe_dump(values))
    return Target(file, lambda: read_config(file, allow_code=True), "yaml")


def study_file(folder: Path) -> Target:
    for name in ("study_shapes", "shapes"):
        text = (shipped_configs() / f"{name}.yaml").read_text(encoding="utf-8")
        write_file(folder / f"{name}.yaml", text)
    file = folder / "study_shapes.yaml"
    return Target(file, lambda: read_study(file), "yaml")


def command_text(text: str, read: Callable[[str], Any]) -> Callable[[Path], Target]:
    """A text on the command line, or a name in a file, which stands in a file here."""

    def target(folder: Path) -> Target:
        file = write_file(folder / "text", text)
        return Target(file, lambda: read(os.fsdecode(file.read_bytes())))

    return target


def read_metric_name(name: str) -> None:
    try:
        get_metric(name, allow_code=False)
    except ValueError as error:  # commands add the option's name
        raise UserError(str(error)) from None


def slice_path(folder: Path) -> Target:
    """The path of an image in a larger file."""
    Image.new("RGB", (24, 24)).save(folder / "photo.png")
    content = (folder / "photo.png").read_bytes()
    (folder / "a.tar").write_bytes(bytes(512) + content)
    path = FileSlice(str(folder / "a.tar"), 512, len(content), zlib.crc32(content), "1.png").path
    return command_text(path, read_image)(folder)


# --- captions


def coco_annotations(folder: Path) -> Target:
    write_coco(folder)
    write_coco(folder, split="val", first=7)
    file = folder / "annotations" / "captions_train2017.json"
    return Target(file, lambda: load(CocoConfig(root=str(folder), max_bad=1)), "json")


def karpathy_entries() -> list[dict[str, Any]]:
    return [
        {
            "filename": f"{n}.png", "imgid": n, "split": "val" if n == 2 else "train", "sentids": [n],
            "sentences": [{"raw": "A dog.", "tokens": ["a", "dog"], "sentid": n, "imgid": n}],
        }
        for n in range(3)
    ]  # fmt: skip


def karpathy_file(folder: Path) -> Target:
    drawn_images(folder / "images")
    value = {"dataset": "x", "images": karpathy_entries()}
    file = write_json_file(folder / "dataset_flickr8k.json", value)
    return Target(file, lambda: load(KarpathyConfig(root=str(folder), max_bad=1)), "json")


def karpathy_coco_file(folder: Path) -> Target:
    (folder / "val2017").mkdir(parents=True)
    entries = [entry | {"filepath": "val2014", "cocoid": n} for n, entry in enumerate(karpathy_entries())]
    for n in range(3):
        (folder / "val2017" / f"{n:012d}.jpg").touch()
    file = write_json_file(folder / "dataset_coco.json", {"dataset": "coco", "images": entries})
    return Target(file, lambda: load(KarpathyConfig(root=str(folder), max_bad=1)), "json")


def folder_table(folder: Path) -> Target:
    drawn_images(folder)
    rows = "".join(f'{n}.png,"a, dog",train\n' for n in range(4))
    file = write_file(folder / "captions.csv", f"file_name,caption,split\n{rows}")
    return Target(file, lambda: load(FolderConfig(root=str(folder), max_bad=1)))


def folder_lines(folder: Path) -> Target:
    drawn_images(folder)
    rows = [{"file_name": f"{n}.png", "caption": ["a dog", "two dogs"], "split": "val"} for n in range(4)]
    file = write_file(folder / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    return Target(file, lambda: load(FolderConfig(root=str(folder), max_bad=1)), "lines")


def flickr8k_folder(folder: Path) -> Callable[[], None]:
    drawn_images(folder / "images")
    write_file(folder / "Flickr_8k.trainImages.txt", "0.png\n1.png\n")
    write_file(folder / "Flickr_8k.devImages.txt", "2.png\n")
    lines = "".join(f"{n}.png#{k}\ta dog runs .\n" for n in range(3) for k in range(2))
    write_file(folder / "Flickr8k.token.txt", lines)
    return lambda: load(Flickr8kConfig(root=str(folder), max_bad=1))


def flickr8k_file(name: str) -> Callable[[Path], Target]:
    return lambda folder: Target(folder / name, flickr8k_folder(folder))


def flickr8k_pairs(folder: Path) -> Target:
    read = flickr8k_folder(folder)
    (folder / "Flickr8k.token.txt").unlink()
    rows = "".join(f'{n}.png,"a dog, running"\n{n}.png,a cat\n' for n in range(3))
    return Target(write_file(folder / "captions.txt", f"image,caption\n{rows}"), read)


def flickr30k_file(name: str) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        drawn_images(folder / "images")
        rows = "".join(f"{n}.png| {k}| a dog runs .\n" for n in range(3) for k in range(2))
        write_file(folder / "results.csv", f"image_name| comment_number| comment\n{rows}")
        write_json_file(folder / "dataset_flickr30k.json", {"images": karpathy_entries()})
        tree: Any = "json" if name.endswith("json") else None
        return Target(folder / name, lambda: load(Flickr30kConfig(root=str(folder), max_bad=1)), tree)

    return target


def shapes_index(folder: Path) -> Target:
    config = ShapesConfig(root=str(folder), train=2, val=1, test=1, unseen=1, size=32, max_bad=1)
    datasets.load(config)
    return Target(config.folder / "captions.jsonl", lambda: load(config), "lines")


def references_file(folder: Path) -> Target:
    write_coco(folder)
    file = folder / "annotations" / "captions_train2017.json"
    return Target(file, lambda: read_references(str(file), max_bad=1), "json")


def scored_file(name: str) -> Callable[[Path], Target]:
    """Results, references and training captions of `captioning evaluate`, whole commands."""

    def target(folder: Path) -> Target:
        write_coco(folder, images=2)
        references = folder / "annotations" / "captions_train2017.json"
        results = [{"image_id": n, "caption": "a dog runs"} for n in (1, 2)]
        write_json_file(folder / "results.json", results)
        rows = "".join(f"{n}.png,a dog runs,train\n" for n in range(2))
        write_file(folder / "training.csv", f"file_name,caption,split\n{rows}")
        options = ("--allow-partial", "--max-bad", "1", "--json", "--training", folder / "training.csv")

        def read() -> None:
            files = ("--predictions", folder / "results.json", "--references", references)
            run_command("evaluate", *files, *options)

        file = references if name == "references" else folder / name
        return Target(file, read, "json" if file.suffix == ".json" else None)

    return target


# --- shards, features, archives


def written_shards(folder: Path) -> Path:
    records = drawn_images(folder / "images")
    read_png = lambda record: ("png", Path(record.path).read_bytes())  # noqa: E731
    shards.write(records, folder / "shards", read_png, holds={"kind": "images"}, per_shard=3)
    return folder / "shards"


def read_shards(root: Path) -> None:
    config = ShardsConfig(root=str(root), max_bad=1)
    config.stored_features()
    for record in datasets.load(config).records:
        read_bytes(record.path)


def shards_index(folder: Path) -> Target:
    root = written_shards(folder)
    return Target(root / "index.json", lambda: read_shards(root), "json")


def shards_listing(folder: Path) -> Target:
    root = written_shards(folder)
    file, index = root / "train-000000.jsonl", root / "index.json"

    def repair() -> None:
        value = json.loads(index.read_text())
        value["shards"][0]["listing_sha256"] = sha256(file)
        index.write_text(json.dumps(value))

    return Target(file, lambda: read_shards(root), "lines", repair)


def adopted_tar(folder: Path) -> Target:
    root = written_shards(folder)

    def read() -> None:
        (root / "index.json").unlink(missing_ok=True)
        shards.adopt(root)
        read_shards(root)

    return Target(root / "train-000000.tar", read)


def tar_member(folder: Path) -> Target:
    """The JSON member of a sample in a tar of another program."""
    drawn_images(folder / "images", 1)
    value = {"image_id": 7, "split": "train", "captions": ["a dog", "a cat"]}
    file, root = write_json_file(folder / "member.json", value), folder / "tars"
    root.mkdir()

    def read() -> None:
        with tarfile.open(root / "a.tar", "w") as tar:
            tar.add(folder / "images" / "0.png", "0.png")
            tar.add(file, "0.json")
        shards.adopt(root)
        read_shards(root)

    return Target(file, read, "json")


def shard_features(folder: Path) -> Target:
    file = folder / "array.npy"
    np.save(file, np.ones((1, 3, 5), np.float16))
    read = ShardFeatures([str(file)])
    return Target(file, lambda: read([0], 0))


def feature_store(folder: Path) -> Path:
    encoder = SmallCNNConfig(channels=(4,), frequencies=0).build().requires_grad_(False)
    encoder.frozen = True
    build_store(drawn_images(folder / "images"), encoder, PREPROCESSING, folder / "store", workers=0)
    return folder / "store"


def store_file(name: str) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        store = feature_store(folder)
        index = store / "index.json"

        def repair() -> None:
            if name.endswith(".npy"):
                value = json.loads(index.read_text())
                value["shards"][0] |= {"sha256": sha256(store / name), "bytes": (store / name).stat().st_size}
                index.write_text(json.dumps(value))

        def read() -> None:
            opened = FeatureStore.open(store)
            opened.rows([0, 1])
            str(opened.skipped)

        return Target(store / name, read, "json" if name.endswith(".json") else None, repair)

    return target


def archive(suffix: str) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        drawn_images(folder / "images", 1)
        file = folder / f"archive{suffix}"
        if suffix == ".zip":
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
                opened.write(folder / "images" / "0.png", "a/0.png")
        else:
            with tarfile.open(file, "w:gz" if suffix == ".tgz" else "w") as opened:
                opened.add(folder / "images" / "0.png", "a/0.png")

        def read() -> None:
            shutil.rmtree(folder / "out", ignore_errors=True)
            archives.unpack(file, folder / "out", max_bytes=10**6)

        return Target(file, read)

    return target


def region_file(suffix: str) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        file, array = folder / f"1{suffix}", np.ones((5, 7), np.float32)
        np.save(file, array) if suffix == ".npy" else np.savez_compressed(file, features=array)
        return Target(file, lambda: read_regions(str(file), channels=7, max_regions=3))

    return target


def frequencies_file(folder: Path) -> Target:
    file, references = folder / "df.npz", [[["a", "dog", "runs"]], [["a", "cat"]]]
    DocumentFrequencies.of(ReferenceCounts(references)).save(file)
    cider = get_metric("CIDEr-D")

    def read() -> None:
        from captioning.metrics import score

        score(
            references,
            [["a", "dog"], ["a", "cat"]],
            metrics=[cider],
            frequencies=DocumentFrequencies.open(file),
        )

    return Target(file, read)


# --- models and runs


def vocabulary_file(folder: Path) -> Target:
    file = folder / "vocabulary.json"
    Vocabulary.build(["a red dog", "a dog"], min_count=1).save(str(file))
    return Target(file, lambda: Vocabulary.open(str(file)).fingerprint, "json")


def model_file(name: str) -> Callable[[Path], Target]:
    """A file of a model folder, in a manifest that agrees with it."""

    def target(folder: Path) -> Target:
        model, pixels = save_tiny_model(folder / "model"), torch.zeros(1, 3, 20, 20)

        def repair() -> None:
            if name != "manifest.json":
                (model / "manifest.json").unlink()
                write_manifest(model)

        def read() -> None:
            captioner = Captioner.open(model)
            if name == "model.safetensors":
                generate_captions(captioner, pixels, [0])

        tree: Any = {".yaml": "yaml", ".json": "json"}.get(Path(name).suffix)
        return Target(model / name, read, tree, repair)

    return target


def model_card(folder: Path) -> Target:
    save_tiny_model(folder / "model")
    file = write_file(folder / "model" / "README.md", "# A model\n\nFor tests.\n")

    def read() -> None:
        with mock.patch.object(pretrained, "FOLDER", folder):
            run_command("models")
            run_command("models", folder / "model")

    return Target(file, read)


def checkpoint_file(name: str) -> Callable[[Path], Target]:
    """A file of a checkpoint, in a manifest that agrees with it."""

    def target(folder: Path) -> Target:
        def new_state() -> TrainState:
            config = TrainingConfig(ema_decay=0.9)
            return TrainState.create(tiny_captioner("show_tell"), config, torch.device("cpu"))

        state, last = new_state(), folder / "checkpoints" / "last"
        for parameter in state.module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        state.optimizer.step()
        checkpoint.save(folder, state, Progress(history=[{"epoch": 1}]), identity=IDENTITY, keep=1)

        def repair() -> None:
            if name != "manifest.json":
                (last / "manifest.json").unlink()
                write_manifest(last)

        def read() -> None:
            found = checkpoint.latest(folder)
            checkpoint.read_progress(found)
            checkpoint.read_identity(found)
            if name.endswith(".safetensors") or name == "progress.json":
                checkpoint.load(found, state)
                state.optimizer.step()

        return Target(last / name, read, "json" if name.endswith(".json") else None, repair)

    return target


def weights_file(suffix: str) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        file, state = folder / f"weights{suffix}", {"a.weight": torch.ones(3, 5), "a.bias": torch.zeros(3)}
        save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
        return Target(file, lambda: match_weights(read_weights(file), state, optional=(), where=str(file)))

    return target


def run_file(name: str) -> Callable[[Path], Target]:
    """A file of a run's folder, read for a comparison."""

    def target(folder: Path) -> Target:
        values = parse(tiny_settings(folder, "run"), where="test").as_json()
        run = folder / "runs" / "run"
        write_file(run / "config.yaml", yaml.safe_dump(values))
        lines = [{"step": n, "val/CIDEr-D": 0.1, "val/loss": 2.0, "train/loss": None} for n in (5, 10)]
        write_file(run / "metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
        speed = {
            f"speed/{name}": 9.0
            for name in ("captions_per_s", "tokens_per_s", "waiting_share", "seconds", "memory_mb")
        }
        write_file(run / "timings.jsonl", json.dumps({"step": 5, **speed}) + "\n")
        write_predictions(str(run / "predictions_val.json"), [])
        write_json_file(run / "predictions_val.json", [{"image_id": 1, "caption": "a dog"}])
        progress = {"step": 10, "epochs_before": 0, "epoch": 2}
        write_json_file(run / "checkpoints" / "last" / "progress.json", progress)

        def read() -> None:
            settings = systems.read_settings(run)
            systems.read_run(settings, "val", metric=settings.metric)
            systems.group_runs([settings])
            if name == "config.yaml":
                systems.read_records([settings], "val")
            if name == "metrics.jsonl":
                Tracker(TrackingConfig(mode="disabled"), run, run_config={}, resume_step=5)

        tree: Any = {".yaml": "yaml", ".json": "json", ".jsonl": "lines"}[Path(name).suffix]
        return Target(run / name, read, tree)

    return target


def scores_file(folder: Path) -> Target:
    value = {"scores": {"Bleu_4": 0.2, "CIDEr-D": 1.0}, "signature": {}}
    file = write_json_file(folder / "scores.json", value)
    return Target(file, lambda: read_scores(file), "json")


def download_file(name: str) -> Callable[[Path], Target]:
    """What a download has left: the state of an unfinished one, or the checksums of finished ones."""

    def target(folder: Path) -> Target:
        remote = RemoteFile(url="https://example.org/a.zip")
        entry = {"url": remote.url, "size": 3, "sha256": "0" * 64, "version": "v"}
        file = write_json_file(folder / name, {remote.name: entry} if name == download.CHECKSUMS else entry)
        (folder / "a.zip").write_bytes(b"abc")

        def read() -> None:
            if name == download.CHECKSUMS:
                known = download._with_recorded(remote, folder)
                with contextlib.suppress(UserError):  # another checksum is refused
                    download._verify(folder / "a.zip", known, advice="fetch it again")
                download._record(folder, folder / "a.zip", remote.url, "0" * 64)
            else:
                download._known_version(file, remote)

        return Target(file, read, "json")

    return target


def lock_owner(folder: Path) -> Target:
    value = {"pid": 1, "host": "there", "since": "2026-01-01 00:00:00"}
    file = write_json_file(folder / locks.OWNER, value)

    def read() -> None:
        with mock.patch("time.sleep"):
            owner = locks._owner(folder)
        str(owner), owner and owner.dead

    return Target(file, read, "json")


# --- images


def photograph(kind: str, mode: str = "RGB", **options: Any) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
        file = folder / "photo"
        image = Image.fromarray(pixels)
        image = (
            Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
        )
        with open(file, "wb") as opened:
            image.save(opened, kind, **options)
        return Target(file, lambda: read_image(str(file)))

    return target


PHOTOGRAPHS = {
    "png": photograph("PNG"), "png palette": photograph("PNG", "P"), "png 16 bits": photograph("PNG", "I;16"),
    "png alpha": photograph("PNG", "LA"), "jpeg": photograph("JPEG"), "jpeg cmyk": photograph("JPEG", "CMYK"),
    "jpeg progressive": photograph("JPEG", progressive=True), "mpo": photograph("MPO", save_all=True),
    "gif": photograph("GIF", "P"), "bmp": photograph("BMP"), "ppm": photograph("PPM"), "pbm": photograph("PPM", "1"),
    "tiff": photograph("TIFF"), "tiff lzw": photograph("TIFF", compression="tiff_lzw"), "webp": photograph("WEBP"),
    "webp lossless": photograph("WEBP", "RGBA", lossless=True),
}  # fmt: skip

TARGETS: dict[str, Callable[[Path], Target]] = {
    "config": config_file,
    "study": study_file,
    "override": command_text("training.epochs=3", lambda text: read_config("shapes", [text])),
    "search option": command_text(
        "width=7", lambda text: override_search(BeamConfig(), options=[text], n_best=2)
    ),
    "plugin": command_text("captioning.tensors:Features", lambda text: load_object(text, allow_code=False)),
    "kind": command_text("shapes", lambda text: find_kind(DatasetConfig, text, where="x")),
    "metric": command_text("CIDEr-D", read_metric_name),
    "slice": slice_path,
    "coco": coco_annotations,
    "karpathy": karpathy_file,
    "karpathy coco": karpathy_coco_file,
    "folder csv": folder_table,
    "folder jsonl": folder_lines,
    "flickr8k tokens": flickr8k_file("Flickr8k.token.txt"),
    "flickr8k list": flickr8k_file("Flickr_8k.trainImages.txt"),
    "flickr8k pairs": flickr8k_pairs,
    "flickr30k captions": flickr30k_file("results.csv"),
    "flickr30k splits": flickr30k_file("dataset_flickr30k.json"),
    "shapes": shapes_index,
    "references": references_file,
    "evaluate results": scored_file("results.json"),
    "evaluate references": scored_file("references"),
    "evaluate training": scored_file("training.csv"),
    "shards index": shards_index,
    "shards listing": shards_listing,
    "tar": adopted_tar,
    "tar member": tar_member,
    "shard features": shard_features,
    "store index": store_file("index.json"),
    "store verified": store_file(".verified.json"),
    "store shard": store_file("shard-00000.npy"),
    "archive zip": archive(".zip"),
    "archive tar": archive(".tar"),
    "archive tgz": archive(".tgz"),
    "regions npy": region_file(".npy"),
    "regions npz": region_file(".npz"),
    "document frequencies": frequencies_file,
    "vocabulary": vocabulary_file,
    **{f"model {name}": model_file(name) for name in (*FILES, "manifest.json")},
    "model card": model_card,
    **{f"checkpoint {name}": checkpoint_file(name) for name in (*checkpoint.FILES, "manifest.json")},
    "weights safetensors": weights_file(".safetensors"),
    "weights pth": weights_file(".pth"),
    "run config": run_file("config.yaml"),
    "run metrics": run_file("metrics.jsonl"),
    "run timings": run_file("timings.jsonl"),
    "run predictions": run_file("predictions_val.json"),
    "run progress": run_file("checkpoints/last/progress.json"),
    "scores": scores_file,
    "lock owner": lock_owner,
    "download state": download_file("state.json"),
    "download checksums": download_file(download.CHECKSUMS),
    **PHOTOGRAPHS,
}
