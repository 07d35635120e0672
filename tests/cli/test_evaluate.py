"""captioning evaluate RUN: captions and scores of a run's splits."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from captioning.captioner.predict import generate_captions
from captioning.config import ExperimentConfig
from captioning.datasets.folder import FolderConfig
from captioning.generation import BeamConfig
from captioning.images.preprocessing import preprocess
from captioning.images.reading import load_image
from tests.helpers.models import PREPROCESSING, WORDS, tiny_captioner
from tests.helpers.running import tool
from tests.helpers.scoring import IMAGES, VAL, pycocoevalcap, write_jsonl


def make_run(root: Path, *, encoder: str = "small") -> ExperimentConfig:
    """A run as captioning train leaves it, but for its model, which nobody trained; with its photographs."""
    photos = root / "data" / "images"
    photos.mkdir(parents=True)
    for number, name in enumerate(IMAGES):
        patches = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(patches).resize((29, 23 + number), Image.Resampling.NEAREST).save(photos / name)
    shutil.move(write_jsonl(root), root / "data" / "captions.jsonl")
    size = replace(PREPROCESSING, size=64) if encoder != "small" else PREPROCESSING
    captioner = tiny_captioner(encoder=encoder, preprocessing=size)
    config = ExperimentConfig(
        name="tiny",
        runs=str(root / "runs"),
        dataset=FolderConfig(root=str(root / "data")),
        encoder=captioner.config.encoder,
        preprocessing=size,
        decoder=captioner.config.decoder,
        search=captioner.config.search,
    )
    config = replace(config, features=replace(config.features, root=str(root / "features"), dtype="float32"))
    captioner.save(config.folder / "model", card="# tiny\n")
    (config.folder / "config.yaml").write_text(yaml.safe_dump(config.as_json()))
    return config


def expected_captions(
    config: ExperimentConfig, split: str, search=None, encoder: str = "small"
) -> dict[str, str]:
    captioner = tiny_captioner(encoder=encoder, preprocessing=config.preprocessing)
    found = {}
    for name, (its, _) in IMAGES.items():
        if its == split:
            pixels = preprocess(load_image(Path(config.dataset.root) / "images" / name), config.preprocessing)
            found[name] = generate_captions(captioner, pixels[None], [name], config=search)[0].caption
    return found


@pytest.mark.parametrize("encoder", ["small", "frozen"])
def test_a_run_s_splits(tmp_path, encoder):
    """Pixels through an encoder that trains, and the feature store of one that doesn't."""
    config = make_run(tmp_path, encoder=encoder)
    run = config.folder
    done = tool("evaluate", run, "--split", "val", "test", "--batch", "2", cwd=tmp_path)
    assert done.code == 0, done.err
    for split, texts in (("val", VAL), ("test", {n: t for n, (s, t) in IMAGES.items() if s == "test"})):
        captions = expected_captions(config, split, encoder=encoder)
        written = json.loads((run / f"predictions_{split}.json").read_text())
        assert {each["image_id"]: each["caption"] for each in written} == captions
        scores = json.loads((run / f"scores_{split}.json").read_text())
        expected = pycocoevalcap(texts, captions)
        for name in ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr-D"):
            assert scores["scores"][name] == pytest.approx(expected[name], abs=1e-6)
        signature = scores["signature"]
        assert signature["coverage"]["share"] == 1 and signature["split"] == split
        assert signature["search"]["width"] == 3 and signature["search"]["kind"] == "beam"
        assert len(signature["model"]) == 16
        assert str(run / f"scores_{split}.json") in done.out.splitlines()
    table = {line.split()[0]: line.split()[1:] for line in done.out.splitlines() if line.split()[1:]}
    assert table["val"] == ["test"] and table["images"] == ["3", "2"]
    assert float(table["ROUGE-L"][1]) == pytest.approx(100 * scores["scores"]["ROUGE_L"], abs=0.006)
    assert (tmp_path / "features").exists() == (encoder == "frozen")
    # what was written can be scored as anyone's
    again = tool(
        "evaluate", "--predictions", run / "predictions_test.json",
        "--references", tmp_path / "data" / "captions.jsonl", "--split", "test", "--json",
    )  # fmt: skip
    assert json.loads(again.out)["CIDEr-D"] == pytest.approx(scores["scores"]["CIDEr-D"])


def test_another_search_and_a_run_that_moved(tmp_path):
    config = make_run(tmp_path)
    lenient = replace(config, dataset=replace(config.dataset, max_bad=0.5))
    (config.folder / "config.yaml").write_text(yaml.safe_dump(lenient.as_json()))
    with open(tmp_path / "data" / "captions.jsonl", "a") as file:
        file.write('{"file_name": "b.png", "caption": "...", "split": "val"}\n')
    moved = tmp_path / "2024"
    config.folder.rename(moved)
    done = tool(
        "evaluate", moved, "--beam", "5", "--max-length", "4", "--length-rule", "sum", "--json", cwd=tmp_path
    )
    search = BeamConfig(width=5, max_length=4, length_rule="sum")
    captions = expected_captions(config, "val", search)
    assert captions != expected_captions(config, "val")
    suffix = "val_max_length=4_length_rule=sum_width=5"
    assert sorted(path.name for path in moved.glob("*_val*")) == [
        f"predictions_{suffix}.json",
        f"scores_{suffix}.json",
    ]  # the names without a suffix are those of the run's own search
    written = json.loads((moved / f"predictions_{suffix}.json").read_text())
    assert {each["image_id"]: each["caption"] for each in written} == captions
    assert set(" ".join(captions.values()).split()) <= set(WORDS)
    told = json.loads(done.out)
    assert told["split"] == "val" and told["files"]["scores"] == str(moved / f"scores_{suffix}.json")
    signature = told["signature"]["search"]
    assert (signature["width"], signature["max_length"], signature["length_rule"]) == (5, 4, "sum")
    assert not (tmp_path / "runs" / "tiny").exists()
    assert "only punctuation" in (moved / "skipped.csv").read_text()  # what the data set passed over
    options = ["--search", "sample", "--search-option", "samples=3", "--search-option", "temperature=2"]
    done = tool("evaluate", moved, *options, cwd=tmp_path)
    assert done.code == 0 and "search sample, max_length=9, samples=3, temperature=2.0" in done.out
    path = moved / "predictions_val_kind=sample_max_length=9_samples=3_temperature=2.0.json"
    written = json.loads(path.read_text())
    assert all(len(each["captions"]) == 3 and each["captions"][0] == each["caption"] for each in written)
    references = tmp_path / "data" / "captions.jsonl"
    references.write_text(
        "".join(references.read_text().splitlines(keepends=True)[:-1])
    )  # all of it is good again
    done = tool("evaluate", "--predictions", path, "--references", references, "--split", "val", "--json")
    assert (done.code, done.err) == (0, "")
    scores = json.loads(done.out)
    assert scores["signature"]["captions_per_image"] == 3 and 0 < scores["Div_1"] < 1


def test_an_image_that_cannot_be_read_lowers_the_coverage(tmp_path):
    config = make_run(tmp_path)
    (tmp_path / "data" / "images" / "b.png").write_bytes(b"")
    done = tool("evaluate", config.folder)
    assert done.code == 2 and "1 of 3 images cannot be read" in done.err  # more than max_bad
    lenient = replace(config, dataset=replace(config.dataset, max_bad=0.5))
    (config.folder / "config.yaml").write_text(yaml.safe_dump(lenient.as_json()))
    done = tool("evaluate", config.folder)
    assert done.code == 0 and done.err == "val: 1 images cannot be read, see coverage\n"
    assert "2 of 3" in done.out
    coverage = json.loads((config.folder / "scores_val.json").read_text())["signature"]["coverage"]
    assert (coverage["images"], coverage["scored"]) == (3, 2)


def test_an_image_without_a_file_lowers_the_coverage(tmp_path):
    config = make_run(tmp_path)
    (tmp_path / "data" / "images" / "b.png").unlink()
    done = tool("evaluate", config.folder)
    assert done.code == 2 and "4 of 19 images and captions are bad" in done.err
    lenient = replace(config, dataset=replace(config.dataset, max_bad=0.5))
    (config.folder / "config.yaml").write_text(yaml.safe_dump(lenient.as_json()))
    done = tool("evaluate", config.folder)
    assert done.code == 0 and done.err == "val: 1 images have no file, see coverage\n"
    coverage = json.loads((config.folder / "scores_val.json").read_text())["signature"]["coverage"]
    assert (coverage["images"], coverage["scored"]) == (3, 2)


def test_what_is_no_run(tmp_path):
    config = make_run(tmp_path)
    run = config.folder
    for folder, arguments, said in (
        (tmp_path / "none", [], "not the folder of a run (no config.yaml)"),
        (run / "model", [], "a model folder, without a data set"),
        (
            run,
            ["--split", "train"],
            "no images in the split 'train'; there are val (3 images), test (2 images)",
        ),
        (run, ["--beam", "99"], "search.width: a beam of 99, but the model has 9 words"),
        (
            run,
            ["--search-option", "forced=zebra"],
            "search.forced: 'zebra' is not among the model's 13 words",
        ),
        (run, ["--search-option", "min_length=50"], "min_length must be from 0 to max_length"),
    ):
        done = tool("evaluate", folder, *arguments)
        assert (done.code, done.out) == (2, "")
        assert said in done.err and len(done.err.splitlines()) == 1
    assert not list(run.glob("predictions*")) + list(run.glob("scores*"))
    weights = bytearray((run / "model" / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (run / "model" / "model.safetensors").write_bytes(weights)
    assert "damaged or edited" in tool("evaluate", run).err
    shutil.rmtree(run / "model")
    done = tool("evaluate", run)
    assert (done.code, done.err) == (
        2,
        f"error: {run}: no model in it yet; it is written after the run's first validation\n",
    )
