"""`captioning inspect`: its files, its output and its messages."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import TypeAdapter

from captioning import datasets
from captioning.captioner.captioner import Captioner
from captioning.cli.inspect import spread, unique_label
from captioning.config import ExperimentConfig
from captioning.datasets import ShapesConfig
from captioning.generation import BeamConfig, GreedyConfig
from captioning.images.preprocessing import preprocess
from captioning.images.reading import load_image
from captioning.inspection.trace import trace_search
from captioning.models.decoders import SoftAttentionLSTMConfig
from captioning.text.vocabulary import VocabularyConfig
from tests.helpers.models import DECODERS, ENCODERS, save_tiny_model, tiny_captioner
from tests.helpers.running import tool


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs `lstm`, `again` (the same config) and `transformer` on long captions; a photo."""
    root = tmp_path_factory.mktemp("inspect")
    data = ShapesConfig(root=str(root / "data"), train=2, val=3, test=0, unseen=0, words=13, size=32)
    for name, kind in (("lstm", "lstm"), ("again", "lstm"), ("transformer", "transformer")):
        config = ExperimentConfig(
            name=name,
            runs=str(root),
            dataset=data,
            encoder=ENCODERS["small"],
            decoder=DECODERS[kind],
            vocabulary=VocabularyConfig(max_length=16),
            search=BeamConfig(max_length=9),
        )
        save_tiny_model(root / name / "model", kind)
        values = TypeAdapter(ExperimentConfig).dump_python(config, mode="json")
        (root / name / "config.yaml").write_text(yaml.safe_dump(values))
    datasets.load(data)
    generator = np.random.default_rng(3)
    patches = Image.fromarray(generator.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    patches.resize((37, 23), Image.Resampling.NEAREST).save(root / "photo.png")
    return root


def test_a_photo(folder):
    done = tool("inspect", folder / "lstm", "--image", folder / "photo.png", "--beam", "1")
    assert (done.code, done.err) == (0, "")
    captioner = Captioner.open(folder / "lstm" / "model")
    pixels = preprocess(load_image(folder / "photo.png"), captioner.config.preprocessing)
    trace = trace_search(captioner, pixels, config=GreedyConfig(max_length=9))
    out = folder / "lstm" / "inspect"
    paths = [str(out / f"photo.trace.{ending}") for ending in ("png", "json", "npz")]
    assert done.out.splitlines()[-3:] == paths
    summary = json.loads(Path(paths[1]).read_text())
    assert summary["words"] == list(trace.words) and done.out.splitlines()[0] == summary["caption"]
    assert summary["word_logprobs"] == pytest.approx(trace.word_logprobs.tolist(), rel=1e-5)
    with np.load(paths[2]) as arrays:
        assert arrays["layer1.forget"].shape == (len(trace.words), 11)
        np.testing.assert_allclose(arrays["layer1.cell"], trace.layers[0]["cell"], rtol=1e-4, atol=1e-6)
    with Image.open(paths[0]) as drawn:
        assert drawn.width > 1000
    assert f"forget gate {trace.layers[0]['forget'].mean():.2f} on average" in done.out


def test_a_given_caption_of_a_model_folder(folder, tmp_path):
    model = folder / "transformer" / "model"
    done = tool("inspect", model, "--image", folder / "photo.png", "--text", "A red cat.", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == "a red cat"
    assert "exposes no gates" in done.out
    summary = json.loads((tmp_path / "inspect" / "photo.trace.json").read_text())
    assert (
        summary["words"] == ["a", "red", "cat", "<end>"]
        and summary["given"]
        and "no gates" in summary["note"]
    )


def test_gradients(folder):
    runs = [folder / name for name in ("lstm", "again", "transformer")]
    out = folder / "new" / "out"
    done = tool(
        "inspect", *runs, "--gradients", "--captions", "2", "--seeds", "2", "--losses", "3", "--out", out
    )
    assert (done.code, done.err) == (0, "")
    report = json.loads((out / "gradients.json").read_text())
    assert list(report["initialisation"]) == ["RNN", "GRU", "LSTM", "Transformer"]
    assert {name: values["seeds"] for name, values in report["trained"].items()} == {
        "LSTM": 2,
        "Transformer": 1,
    }
    assert all(values["seeds"] == 2 for values in report["initialisation"].values())
    assert report["verdict"]["trained"] is None and report["verdict"]["initialisation"]["answer"] in (
        "yes",
        "partly",
        "no",
    )
    assert report["verdict"]["initialisation"]["sentence"] in done.out
    longest = max(caption["words"] for caption in report["captions"])
    assert 11 <= longest <= 16 and len(report["captions"]) == 2
    assert len(report["trained"]["LSTM"]["inputs"]["mean"]) == longest
    assert report["parameters"]["LSTM"] == sum(
        parameter.numel() for parameter in tiny_captioner("lstm").decoder.parameters()
    )
    assert done.out.splitlines()[-2:] == [str(out / "gradients.png"), str(out / "gradients.json")]
    assert "LSTM, by cell" in done.out
    # two runs of the same weights: no spread
    numbers = report["trained"]["LSTM"]["inputs"]
    assert numbers["low"] == numbers["high"] and min(numbers["mean"]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "--image", "photo.png"], "none: no such folder; give a run (runs/NAME), a model folder or"),
        (["data", "--image", "photo.png"], "data: holds no model (no manifest.json, no model/); give a finished run"),
        (["lstm", "--image", "none.png"], "none.png: no such file"),
        (["lstm", "--image", "photo.png", "--text", "a zebra"], "--text: 'zebra' is not in the model's"),
        (["lstm/model", "--gradients"], "lstm/model: is a model folder, without a data set"),
        (["lstm", "--gradients", "--split", "test"], "no images in the split 'test'; there are"),
        (["lstm", "other", "--gradients"], "other: another data set than lstm; give runs of one data set"),
        (["lstm", "--image", "photo.png", "--out", "photo.png"], "photo.png: cannot create this folder"),
        (["lstm"], "give either --image FILE or --gradients"),
        (["lstm", "again", "--image", "photo.png"], "--image takes one RUN"),
        (["lstm", "--gradients", "--search-option", "seed=3"], "--search-option has no meaning with"),
        (["lstm", "--gradients", "--beam", "3"], "--beam has no meaning with --gradients"),
        (["lstm", "--image", "photo.png", "--seeds", "3"], "--seeds has no meaning with --image"),
        (["lstm", "--image", "photo.png", "--text", "a", "--beam", "3"], "--text gives the caption; search options"),
    ],
)  # fmt: skip
def test_errors(folder, arguments, message):
    if "other" in arguments and not (folder / "other").exists():
        save_tiny_model(folder / "other" / "model")
        text = (folder / "lstm" / "config.yaml").read_text()
        (folder / "other" / "config.yaml").write_text(text.replace("words: 13", "words: 17"))
    done = tool("inspect", *arguments, cwd=folder)
    assert (done.code, done.out) == (2, "")
    assert message in done.err.splitlines()[-1]


def test_equal_decoders_share_a_label_and_different_ones_do_not():
    small, large = SoftAttentionLSTMConfig(hidden=11), SoftAttentionLSTMConfig(hidden=13)
    larger = SoftAttentionLSTMConfig(hidden=17)
    labels = {}
    runs = [(small, "a/x"), (large, "a/y"), (small, "b/x"), (larger, "b/y")]
    given = [unique_label(config, Path(folder), labels) for config, folder in runs]
    assert given == ["LSTM", "LSTM of y", "LSTM", "LSTM of b/y"]
    assert labels == {"LSTM": small, "LSTM of y": large, "LSTM of b/y": larger}


def test_records_are_evenly_spaced():
    assert spread(list(range(10)), 3) == [0, 3, 6] and spread([5, 7], 3) == [5, 7]
