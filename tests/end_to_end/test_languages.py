"""Other tokenizers and byte-pair vocabularies through every command."""

import csv
import json
import math

import pytest
import yaml
from PIL import Image

from captioning.captioner.captioner import Captioner
from tests.helpers.running import tool
from tests.helpers.training import experiment, metrics_of, tiny_settings

COLOURS = {"红色": "red", "蓝色": "blue", "绿色": "green", "黄色": "yellow"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of one colour with Chinese captions, and files of captions to score."""
    folder = tmp_path_factory.mktemp("languages")
    (folder / "photos" / "images").mkdir(parents=True)
    rows, results = [("file_name", "caption", "split")], []
    for number in range(32):
        name, (colour, english) = f"{number}.png", list(COLOURS.items())[number % 4]
        image = Image.new("RGB", (32, 32), english)
        image.putpixel((number, 31), (255, 255, 255))  # no two files are equal
        image.save(folder / "photos" / "images" / name)
        split = "train" if number < 20 else "val"
        rows += [(name, f"这是一张{colour}的图片。", split), (name, f"图片里只有{colour}", split)]
        if split == "val":
            results.append({"image_id": name, "caption": "这是一张红色的图片"})
    with open(folder / "photos" / "captions.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def settings(folder, name, **changes):
    """Settings of one epoch on the Chinese captions."""
    values = tiny_settings(folder, name, epochs=1)
    values["dataset"] = {"kind": "folder", "root": str(folder / "photos")}
    return values | changes


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", ()),
        ("train", ("vocabulary.kind=bpe",)),
        ("train", ("text.tokenizer=whitespace",)),
        ("prepare", ("folder", "--root", "photos", "--quick")),
        ("evaluate", ("--predictions", "results.json", "--references", "photos/captions.csv", "--split", "val")),
        ("compare", ("--predictions", "results.json", "--references", "photos/captions.csv", "--split", "val")),
    ],
)  # fmt: skip
def test_whole_sentences_as_words_are_refused_and_the_settings_named(folder, command, options):
    if command == "train":
        (folder / "config.yaml").write_text(yaml.safe_dump(settings(folder, "refused")))
        options = ("config.yaml", *options)
    done = tool(command, *options, cwd=folder)
    message = done.err.splitlines()[-1]
    assert done.code == 2 and "Traceback" not in done.err and not (folder / "runs/refused/model").exists()
    assert "as in a language without spaces between words; set text.tokenizer=characters" in message
    assert "vocabulary.kind=bpe" in message and "--tokenizer characters" in message


def test_characters_are_scored_by_their_option(folder):
    done = tool("prepare", "folder", "--root", "photos", "--tokenizer", "characters", "--json", cwd=folder)
    assert done.code == 0 and json.loads(done.out)["splits"]["train"]["lengths"]["100"] == 9
    options = ("--references", "photos/captions.csv", "--split", "val", "--tokenizer", "characters")
    done = tool("evaluate", "--predictions", "results.json", *options, "--json", cwd=folder)
    scores = json.loads(done.out)
    assert scores["signature"]["tokenizer"].startswith("characters")
    assert 0.6 < scores["Bleu_1"] < 1 and scores["length"] == 9
    done = tool("compare", "--predictions", "results.json", *options, "--out", "report", cwd=folder)
    assert done.code == 0 and "Tokenizer: characters" in (folder / "report/report.md").read_text()
    done = tool("evaluate", "runs/x", "--tokenizer", "characters", cwd=folder)
    assert done.code == 2 and "--tokenizer is for --predictions" in done.err


@pytest.mark.parametrize("vocabulary", [{"min_count": 1}, {"kind": "bpe", "size": 30, "min_count": 1}])
def test_a_run_on_characters(folder, vocabulary):
    name = vocabulary.get("kind", "words")
    values = settings(
        folder, name, text={"tokenizer": "characters"}, vocabulary=vocabulary | {"max_length": 20}
    )
    run = experiment(values)
    run.train()
    model = Captioner.open(run.folder / "model")
    assert model.vocabulary.tokenizer == "characters" and (model.vocabulary.merges is None) == (
        name == "words"
    )
    done = tool("evaluate", f"runs/{name}", "--json", cwd=folder)
    scores = json.loads(done.out)
    assert scores["signature"]["tokenizer"].startswith("characters") and scores["Bleu_1"] > 0
    validated = metrics_of(run.folder)[-1]
    assert scores["CIDEr-D"] == pytest.approx(validated["val/CIDEr-D"], abs=1e-6)
    options = ("--search-option", "forced=[红色]", "--search-option", "banned=[图片]", "--max-length", "12")
    done = tool("caption", "photos/images/20.png", "--model", f"runs/{name}", *options, cwd=folder)
    caption = done.out.split("\t")[1]
    assert "红色" in caption and "图片" not in caption and " " not in caption


@pytest.fixture(scope="module")
def pieces(folder):
    """A run on drawn scenes with pieces of words, the second phase self-critical."""
    values = tiny_settings(folder, "pieces", epochs=1)
    values["vocabulary"] = {"kind": "bpe", "size": 60, "min_count": 1, "max_length": 60}
    values["search"] = {"kind": "beam", "width": 2, "max_length": 24}
    critical = {"samples": 2, "max_length": 24}
    values["phases"] = [{**values["training"], "ema_decay": 0.0, "self_critical": critical}]
    run = experiment(values)
    run.train()
    return run.folder


def test_a_run_on_pieces_of_words(pieces, folder):
    model = Captioner.open(pieces / "model")
    assert len(model.vocabulary) == 64 and model.vocabulary.merges
    assert {path.name for path in (pieces / "model").iterdir()} == {
        "README.md", "config.yaml", "manifest.json", "model.safetensors", "vocabulary.json",
    }  # fmt: skip
    assert "64 pieces" in (pieces / "model/README.md").read_text()
    assert {"train/loss", "train/reward"} <= {key for line in metrics_of(pieces) for key in line}
    done = tool("evaluate", "runs/pieces", "--errors", "--json", cwd=folder)
    scores = json.loads(done.out)
    assert scores["signature"]["tokenizer"].startswith("PTB") and scores["errors"]["unknown"] < 1


def test_captions_of_pieces_and_their_numbers(pieces, folder):
    photo = next((folder / "shapes").rglob("*.png"))
    options = ("--search-option", "forced=[circle, two]", "--search-option", "banned=[red, the]")
    done = tool(
        "caption", photo, "--model", pieces, *options, "--json", "--words", "--attention", "seen", cwd=folder
    )
    entry = json.loads(done.out)
    words = entry["caption"].split()
    assert {"circle", "two"} <= {*words} and not {"red", "the"} & {*words} and "ids" not in entry
    assert sum(piece["logprob"] for piece in entry["words"]) == pytest.approx(entry["logprob"], abs=1e-4)
    spelled = "".join(piece["word"] for piece in entry["words"] if piece["word"] != "<end>")
    assert " ".join(filter(None, spelled.split("▁"))) == entry["caption"] and len(entry["words"]) > len(words)
    assert list((folder / "seen").rglob("*.attention.png"))


def test_inside_a_decoder_of_pieces(pieces, folder):
    photo = next((folder / "shapes").rglob("*.png"))
    done = tool("inspect", pieces, "--image", photo, "--text", "A red circle.", "--out", "see", cwd=folder)
    (path,) = (folder / "see").glob("*.trace.json")
    trace = json.loads(path.read_text())
    assert done.code == 0 and trace["caption"] == "a red circle"
    assert "".join(trace["words"]) == "a▁red▁circle▁<end>"
    assert math.isclose(sum(trace["word_logprobs"]), trace["logprob"], abs_tol=1e-9)
    done = tool("inspect", pieces, "--image", photo, "--text", "a dög", "--out", "see", cwd=folder)
    assert done.code == 2 and "'dög' is not in the model's vocabulary" in done.err
