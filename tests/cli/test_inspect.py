"""`captioning inspect` as a process: the files it writes, its messages, and its name beside the standard library's."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import TypeAdapter

from captioning import datasets
from captioning.captioner.captioner import Captioner
from captioning.config import ExperimentConfig
from captioning.datasets import ShapesConfig
from captioning.generation import BeamConfig, GreedyConfig
from captioning.images.preprocessing import preprocess
from captioning.images.reading import load_image
from captioning.inspection.trace import trace_search
from captioning.text.vocabulary import VocabularyConfig
from tests.helpers.models import DECODERS, ENCODERS, save_tiny_model, tiny_captioner
from tests.helpers.running import ROOT, tool


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs `lstm`, `again` (its config) and `transformer` on long captions; a photo."""
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
    told = json.loads(Path(paths[1]).read_text())
    assert told["words"] == list(trace.words) and done.out.splitlines()[0] == told["caption"]
    assert told["word_logprobs"] == pytest.approx(trace.word_logprobs.tolist(), rel=1e-5)
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
    assert "no gates" in done.out
    told = json.loads((tmp_path / "inspect" / "photo.trace.json").read_text())
    assert told["words"] == ["a", "red", "cat", "<end>"] and told["given"] and "no gates" in told["note"]


def test_gradients(folder):
    runs = [folder / name for name in ("lstm", "again", "transformer")]
    out = folder / "new" / "out"
    done = tool(
        "inspect", *runs, "--gradients", "--captions", "2", "--seeds", "2", "--losses", "3", "--out", out
    )
    assert (done.code, done.err) == (0, "")
    told = json.loads((out / "gradients.json").read_text())
    assert list(told["initialisation"]) == ["RNN", "GRU", "LSTM", "Transformer"]
    assert {name: each["seeds"] for name, each in told["trained"].items()} == {"LSTM": 2, "Transformer": 1}
    assert all(each["seeds"] == 2 for each in told["initialisation"].values())
    assert told["verdict"]["trained"] is None and told["verdict"]["initialisation"]["answer"] in (
        "yes",
        "partly",
        "no",
    )
    assert told["verdict"]["initialisation"]["sentence"] in done.out
    longest = max(each["words"] for each in told["captions"])
    assert 11 <= longest <= 16 and len(told["captions"]) == 2
    assert len(told["trained"]["LSTM"]["inputs"]["mean"]) == longest
    assert told["parameters"]["LSTM"] == sum(
        each.numel() for each in tiny_captioner("lstm").decoder.parameters()
    )
    assert done.out.splitlines()[-2:] == [str(out / "gradients.png"), str(out / "gradients.json")]
    assert "LSTM, by cell" in done.out
    # two runs of the same weights: no spread
    numbers = told["trained"]["LSTM"]["inputs"]
    assert numbers["low"] == numbers["high"] and min(numbers["mean"]) > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none", "--image", "photo.png"], "none: no such folder; give a run (runs/NAME) or a model folder"),
        (["data", "--image", "photo.png"], "data: holds no model (no manifest.json, no model/); give a finished run"),
        (["lstm", "--image", "none.png"], "none.png: no such file"),
        (["lstm", "--image", "photo.png", "--text", "a zebra"], "--text: 'zebra' is not a word of the model's"),
        (["lstm/model", "--gradients"], "lstm/model: a model's folder, which knows no captions"),
        (["lstm", "--gradients", "--split", "test"], "no images in the split 'test'; there are"),
        (["lstm", "other", "--gradients"], "other: another data set than lstm; give runs of one data set"),
        (["lstm", "--image", "photo.png", "--out", "photo.png"], "photo.png: cannot be made a folder"),
        (["lstm"], "give --image FILE or --gradients, one of them"),
        (["lstm", "again", "--image", "photo.png"], "--image takes one RUN"),
        (["lstm", "--gradients", "--search-option", "seed=3"], "--search-option has no meaning with"),
        (["lstm", "--gradients", "--beam", "3"], "--beam has no meaning with --gradients"),
        (["lstm", "--image", "photo.png", "--seeds", "3"], "--seeds has no meaning with --image"),
        (["lstm", "--image", "photo.png", "--text", "a", "--beam", "3"], "--text is read as it is"),
    ],
)  # fmt: skip
def test_errors(folder, arguments, said):
    if "other" in arguments and not (folder / "other").exists():
        save_tiny_model(folder / "other" / "model")
        text = (folder / "lstm" / "config.yaml").read_text()
        (folder / "other" / "config.yaml").write_text(text.replace("words: 13", "words: 17"))
    done = tool("inspect", *arguments, cwd=folder)
    assert (done.code, done.out) == (2, "")
    assert said in done.err.splitlines()[-1]


@pytest.mark.parametrize("name", ["inspect_model", "caption", "prepare"])
def test_its_name_is_the_standard_library_s_and_no_tool_minds(name, tmp_path):
    """A tool's folder is the first that Python looks in, and dataclasses import `inspect`."""
    script = ROOT / "tools" / f"{name}.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import dataclasses, inspect\n"
        "assert inspect.signature(dataclasses.replace) and 'captioning' not in sys.modules\n"
        "assert not inspect.__file__.startswith(sys.argv[1]), inspect.__file__"
    )
    done = subprocess.run([sys.executable, "-c", code, script.parent], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
