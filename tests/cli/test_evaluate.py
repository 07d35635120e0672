"""captioning evaluate as a process: a run's splits, and anyone's captions against every kind of references."""

import csv
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
from captioning.records import Prediction, write_predictions
from captioning.text.tokenizer import tokenize
from tests.helpers.models import PREPROCESSING, WORDS, tiny_captioner
from tests.helpers.running import python, tool

IMAGES = {  # name: split, references
    "a 1.png": ("val", ["A dog runs on the grass.", "the dog, on grass"]),
    "b.png": ("val", ["A red cat!", "the café cat", "two cats"]),
    "c.png": ("val", ["grass on a dog", "the red runs"]),
    "d.png": ("test", ["The dog", "A dog and a cat sleep"]),
    "e.png": ("test", ["a cat", "Cats on grass", 'a "cat", red']),
    "f.png": ("odd", ["one, two"]),
}
CAPTIONS = {"a 1.png": "A dog runs on grass", "b.png": "the red cat.", "c.png": "a grass cat runs on a dog"}
METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr", "CIDEr-D")  # in JSON
PRINTED = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "CIDEr-D")
VAL = {name: texts for name, (split, texts) in IMAGES.items() if split == "val"}


# --- scoring files ---------------------------------------------------------------------------------------------


def results(path: Path, captions: dict) -> Path:
    path.write_text(json.dumps([{"image_id": key, "caption": text} for key, text in captions.items()]))
    return path


@pytest.fixture
def predictions(tmp_path) -> Path:
    return results(tmp_path / "p.json", CAPTIONS)


def write_coco(folder: Path, images: dict = VAL, first: int = 101) -> Path:
    ids = {name: first + 2 * number for number, name in enumerate(images)}
    content = {
        "images": [{"id": ids[name], "file_name": name} for name in images],
        "annotations": [
            {"id": 1000 * ids[name] + number, "image_id": ids[name], "caption": text}
            for name, texts in images.items()
            for number, text in enumerate(texts)
        ],
    }
    path = folder / "captions_mine.json"
    path.write_text(json.dumps(content))
    return path


def write_karpathy(folder: Path) -> Path:
    path = folder / "dataset_mine.json"
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": text} for text in texts]}
        for name, (split, texts) in IMAGES.items()
    ]
    path.write_text(json.dumps({"images": images, "dataset": "mine"}))
    return path


def write_lists(folder: Path) -> None:
    for split, name in (("train", "odd"), ("dev", "val"), ("test", "test")):
        names = [image for image, (its, _) in IMAGES.items() if its == name]
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names))


def write_tokens(folder: Path, images: dict | None = None) -> Path:
    path = folder / "Flickr8k.token.txt"
    images = images or {name: texts for name, (_, texts) in IMAGES.items()}
    rows = [f"{name}#{n}\t{text}\n" for name, texts in images.items() for n, text in enumerate(texts)]
    path.write_text("".join(rows))
    return path


def write_pairs(folder: Path) -> Path:
    path = folder / "captions.txt"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(
            [("image", "caption"), *((name, text) for name, (_, texts) in IMAGES.items() for text in texts)]
        )
    return path


def write_folder_csv(folder: Path) -> Path:
    path = folder / "mine.csv"
    rows = [(text, split, name) for name, (split, texts) in IMAGES.items() for text in texts]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("caption", "split", "file_name"), *rows])
    return path


def write_jsonl(folder: Path) -> Path:
    path = folder / "mine.jsonl"
    rows = [{"file_name": name, "caption": texts, "split": split} for name, (split, texts) in IMAGES.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_piped(folder: Path) -> Path:
    path = folder / "results.csv"
    rows = [f"{name}| {n}| {text}" for name, texts in VAL.items() for n, text in enumerate(texts)]
    path.write_text("\n".join(["image_name| comment_number| comment", *rows]))
    return path


@pytest.mark.parametrize(
    "write",
    [write_coco, write_karpathy, write_tokens, write_pairs, write_folder_csv, write_jsonl, write_piped],
)
def test_all_references_give_pycocoevalcap_s_scores(tmp_path, predictions, write):
    """The scores of one split, from whatever file the references come in."""
    if write in (write_tokens, write_pairs):
        write_lists(tmp_path)
    path = write(tmp_path)
    arguments = ["--predictions", predictions, "--references", path, "--split", "val", "--json"]
    done = tool("evaluate", *arguments, "--out", tmp_path / "s.json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    expected, each = pycocoevalcap(VAL, CAPTIONS), pycocoevalcap_of_each(VAL, CAPTIONS)
    written = json.loads((tmp_path / "s.json").read_text())["per_image"]
    assert len(written) == len(each) == len(VAL)
    for name in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr-D"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6), name
        assert [entry[name] for entry in written] == pytest.approx([of[name] for of in each], abs=1e-6), name
    assert 0 < found["CIDEr"] < 10
    signature = found["signature"]
    assert signature["split"] == "val" and signature["search"] is None
    assert signature["coverage"] == {"images": 3, "scored": 3, "share": 1, "passed_over": 0}
    assert signature["matched_by"] == ("file name" if write is write_coco else "image id")


def pycocoevalcap(references: dict, captions: dict) -> dict[str, float]:
    return {name: whole for name, (whole, _) in _pycocoevalcap(references, captions).items()}


def pycocoevalcap_of_each(references: dict, captions: dict) -> list[dict[str, float]]:
    found = _pycocoevalcap(references, captions)
    return [{name: float(each[row]) for name, (_, each) in found.items()} for row in range(len(captions))]


def _pycocoevalcap(references: dict, captions: dict) -> dict[str, tuple]:
    """Each metric's corpus score and those of the images."""
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    gts = {key: [" ".join(tokenize(text)) for text in texts] for key, texts in references.items()}
    res = {key: [" ".join(tokenize(text))] for key, text in captions.items()}
    four = bleu.Bleu(4).compute_score(gts, res, verbose=0)
    scores = {f"Bleu_{n}": pair for n, pair in enumerate(zip(*four, strict=True), 1)}
    return {**scores, "ROUGE_L": Rouge().compute_score(gts, res), "CIDEr-D": Cider().compute_score(gts, res)}


def test_text_is_the_same_numbers_times_100(tmp_path, predictions):
    arguments = ["--predictions", predictions, "--references", write_jsonl(tmp_path), "--split", "val"]
    done = tool("evaluate", *arguments, "--out", tmp_path / "new" / "s.json")
    assert (done.code, done.err) == (0, "")
    rows = dict(line.split()[:2] for line in done.out.splitlines()[1:-1])
    written = json.loads((tmp_path / "new" / "s.json").read_text())
    assert done.out.splitlines()[-1] == f"scores: {tmp_path / 'new' / 's.json'}"
    for printed, name in zip(PRINTED, METRICS, strict=True):
        assert float(rows[printed]) == pytest.approx(100 * written["scores"][name], abs=0.006)
    assert [each["image_id"] for each in written["per_image"]] == list(VAL)


def test_no_torch_to_score(tmp_path, predictions):
    code = (
        "import sys\n"
        "from captioning.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, file=sys.stderr)"
    )
    done = python(
        code, "evaluate", "--predictions", str(predictions), "--references", str(write_coco(tmp_path))
    )
    assert done.err.splitlines()[-1] == "0 False"
    assert "BLEU-4" in done.out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c.pop("b.png"),
            "split 'val': 1 images have no prediction ('b.png'); caption them, or score",
        ),
        (
            lambda c: c.update({"d.png": "x"}),
            "split 'val': 1 predictions are of images that are not in it ('d.png')",
        ),
        (lambda c: (c.clear(), c.update({9: "x"})), "split 'val': no prediction is of one of its images"),
    ],
    ids=["missing", "extra", "of something else"],
)
def test_every_image_counts(tmp_path, change, said):
    captions = dict(CAPTIONS)
    change(captions)
    references = write_karpathy(tmp_path)
    arguments = ["--predictions", results(tmp_path / "p.json", captions), "--references", references]
    done = tool("evaluate", *arguments, "--split", "val")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {said}") and len(done.err.splitlines()) == 1


def test_one_image_captioned_twice(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"image_id": "b.png", "caption": text} for text in ("a cat", "a dog")]))
    done = tool("evaluate", "--predictions", path, "--references", write_karpathy(tmp_path), "--split", "val")
    assert done.code == 2 and "occur twice" in done.err


def test_a_part_is_scored_on_demand_and_says_so(tmp_path):
    captions = {name: CAPTIONS[name] for name in ("a 1.png", "c.png")}
    predictions = results(tmp_path / "p.json", {**captions, "d.png": "of another split"})
    arguments = ["--predictions", predictions, "--references", write_karpathy(tmp_path), "--split", "val"]
    done = tool("evaluate", *arguments, "--allow-partial")
    rows = [line for line in done.out.splitlines() if line.split()[0] in PRINTED]
    assert done.code == 0 and len(rows) == len(PRINTED)
    assert all(row.endswith("on 2 of 3 images") for row in rows)
    found = json.loads(tool("evaluate", *arguments, "--allow-partial", "--json").out)
    assert found["signature"]["coverage"] == {"images": 3, "scored": 2, "share": 2 / 3, "passed_over": 1}
    # document frequencies are still those of all three images: only BLEU and ROUGE can be those of a part alone
    expected = pycocoevalcap({name: VAL[name] for name in captions}, captions)
    for name in ("Bleu_1", "Bleu_4", "ROUGE_L"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6)


@pytest.mark.parametrize(
    ("ids", "how"), [(int, "image id"), (str, "image id as text"), (lambda i: f"{i}.jpg", "file name")]
)
def test_images_under_other_names(tmp_path, ids, how):
    images = {f"{number}.jpg": texts for number, texts in zip((101, 103, 105), VAL.values(), strict=True)}
    captions = {ids(number): text for number, text in zip((101, 103, 105), CAPTIONS.values(), strict=True)}
    predictions = results(tmp_path / "p.json", captions)
    done = tool(
        "evaluate", "--predictions", predictions, "--references", write_coco(tmp_path, images), "--json"
    )
    found = json.loads(done.out)
    assert found["signature"]["matched_by"] == how
    assert done.err == ("" if how == "image id" else f"{predictions}: its images are matched by {how}\n")
    assert found["Bleu_4"] == pytest.approx(pycocoevalcap(VAL, CAPTIONS)["Bleu_4"], abs=1e-6)


def test_which_split_must_be_said(tmp_path, predictions):
    path = write_jsonl(tmp_path)
    done = tool("evaluate", "--predictions", predictions, "--references", path)
    assert done.code == 2
    assert (
        done.err
        == f"error: {path}: contains val (3 images), test (2 images), odd (1 images); choose one of them with --split\n"
    )
    done = tool("evaluate", "--predictions", predictions, "--references", path, "--split", "tset")
    assert done.code == 2 and "no images in the split 'tset'; there are val (3 images)" in done.err


def test_a_file_without_splits_is_one(tmp_path):
    captions = {name: texts[0] for name, (_, texts) in IMAGES.items()}
    predictions = results(tmp_path / "p.json", captions)
    for write in (write_tokens, write_pairs):
        path = write(tmp_path)
        found = json.loads(tool("evaluate", "--predictions", predictions, "--references", path, "--json").out)
        assert found["signature"]["split"] == path.name.split(".")[0]
        assert found["signature"]["coverage"]["images"] == len(IMAGES)
        assert found["ROUGE_L"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "unknown format of reference captions"),
        ("a,b\n1,2\n", "unknown format of reference captions"),
        ('{"images": [', "broken JSON at line 1, column 13"),
        ('[{"image_id": 1, "caption": "x"}]', "look like results (predictions), not annotations"),
    ],
)
def test_references_of_another_kind(tmp_path, predictions, content, said):
    path = tmp_path / "x.json"
    path.write_text(content)
    done = tool("evaluate", "--predictions", predictions, "--references", path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {path}: ") and said in done.err


def test_files_that_are_not_there(tmp_path, predictions):
    for arguments in (
        ["--predictions", predictions, "--references", tmp_path / "no.json"],
        ["--predictions", tmp_path / "no.json", "--references", write_coco(tmp_path)],
    ):
        done = tool("evaluate", *arguments)
        assert (done.code, done.out, done.err) == (2, "", f"error: {tmp_path / 'no.json'}: no such file\n")


def test_captions_that_cannot_be_compared_with_are_named(tmp_path):
    images = {f"{number}.jpg": ["a dog", "a cat"] for number in range(60)}
    images["7.jpg"] = ["a dog", "..."]
    predictions = results(tmp_path / "p.json", dict.fromkeys(images, "a dog"))
    done = tool("evaluate", "--predictions", predictions, "--references", write_coco(tmp_path, images))
    assert done.code == 0
    assert "passed over 1 caption has no words, only punctuation" in done.err.splitlines()[0]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--predictions", "p.json"],
        ["runs/x", "--predictions", "p.json"],
        ["runs/x", "--allow-partial"],
        ["--predictions", "p", "--references", "r", "--beam", "3"],
        ["--predictions", "p", "--references", "r", "--split", "a", "b"],
    ],
)
def test_arguments_that_do_not_go_together(arguments):
    done = tool("evaluate", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: ")


# --- two systems, n captions, further metrics, odd text ----------------------------------------------------------

OTHERS = {"a 1.png": "A dog on the", "b.png": "two cats", "c.png": "the red cat runs"}


def test_two_systems_against_each_other(tmp_path, predictions):
    references, other = write_jsonl(tmp_path), results(tmp_path / "other.json", OTHERS)
    arguments = [
        "--against",
        other,
        "--references",
        references,
        "--split",
        "val",
        "--resamples",
        "89",
        "--seed",
        "3",
    ]
    done = tool("evaluate", "--predictions", predictions, *arguments, "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    against, expected = found["against"], pycocoevalcap(VAL, OTHERS)
    assert list(against["comparison"]) == list(METRICS) and against["not_compared"] == []
    for name in ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr-D"):
        assert against["scores"][name] == pytest.approx(expected[name], abs=1e-6)
    assert (against["resamples"], against["seed"]) == (89, 3)
    assert (
        "Bleu_1" in found
        and found["signature"]["predictions_fingerprint"] != against["signature"]["predictions_fingerprint"]
    )
    # by resampling the images' own scores, which for ROUGE-L gives the corpus score
    drawn = np.random.default_rng(3).integers(0, 3, (89, 3))
    each = [[rouge(CAPTIONS[name], VAL[name]) - rouge(OTHERS[name], VAL[name])] for name in VAL]
    differences = np.array(each).ravel()[drawn].mean(axis=1)
    compared = against["comparison"]["ROUGE_L"]
    assert [compared["low"], compared["high"]] == pytest.approx(
        np.percentile(differences, [2.5, 97.5]).tolist()
    )
    assert compared["difference"] == pytest.approx(found["ROUGE_L"] - expected["ROUGE_L"])
    smallest = min(each["p"] for each in against["comparison"].values())
    assert min(each["p_holm"] for each in against["comparison"].values()) == pytest.approx(
        min(1, 7 * smallest)
    )

    text = tool("evaluate", "--predictions", predictions, *arguments).out.splitlines()
    row = next(line.split() for line in text if line.startswith("ROUGE-L") and ".." in line)
    assert row[1:4] == [
        f"{100 * compared['a']:.2f}",
        f"{100 * compared['b']:.2f}",
        f"{100 * compared['difference']:+.2f}",
    ]
    assert row[-2:] == [f"{compared['p']:.4f}", f"{compared['p_holm']:.4f}"]
    # a system against itself
    same = tool("evaluate", "--predictions", other, *arguments, "--json")
    assert {
        (each["difference"], each["p"]) for each in json.loads(same.out)["against"]["comparison"].values()
    } == {(0, 1)}


def rouge(caption: str, references: list[str]) -> float:
    return pycocoevalcap({0: references}, {0: caption})["ROUGE_L"]


def test_seed_0_is_the_default_and_can_be_given(tmp_path, predictions):
    other, references = results(tmp_path / "other.json", OTHERS), write_jsonl(tmp_path)
    arguments = [
        "--predictions",
        predictions,
        "--against",
        other,
        "--references",
        references,
        "--split",
        "val",
    ]
    arguments += ["--resamples", "31", "--json"]
    default, zero, one = (
        json.loads(tool("evaluate", *arguments, *seed).out)["against"]
        for seed in ([], ["--seed", "0"], ["--seed", "1"])
    )
    assert default == zero and zero["seed"] == 0 and zero["comparison"] != one["comparison"]


def test_own_metric_is_scored_and_compared(tmp_path, predictions):
    (tmp_path / "length_error.py").write_text(
        "from captioning.metrics import Metric, mean_score\n"
        "class LengthError(Metric):\n"
        "    name, description = 'Length-error', 'tokens more or less than the nearest reference'\n"
        "    higher_is_better, scale = False, 1.0\n"
        "    def score(self, captions):\n"
        "        return mean_score([min(abs(len(own) - len(text)) for text in texts)\n"
        "                           for texts, own in captions.pairs()])\n"
    )
    other, references = results(tmp_path / "other.json", OTHERS), write_jsonl(tmp_path)
    arguments = [
        "--predictions",
        predictions,
        "--against",
        other,
        "--references",
        references,
        "--split",
        "val",
    ]
    arguments += ["--resamples", "31", "--metric", "length_error:LengthError"]
    done = tool("evaluate", *arguments, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    rows = [line.split() for line in done.out.splitlines() if line.startswith("Length-error")]

    def error(captions: dict[str, str]) -> float:
        lengths = {name: [len(tokenize(text)) for text in texts] for name, texts in VAL.items()}
        return np.mean(
            [min(abs(len(tokenize(captions[name])) - length) for length in lengths[name]) for name in VAL]
        )

    a, b = error(CAPTIONS), error(OTHERS)
    assert rows[0] == ["Length-error", f"{a:.2f}"] and a != b
    assert rows[1][1:4] == [f"{a:.2f}", f"{b:.2f}", f"{a - b:+.2f}"]


def test_systems_of_different_images_are_not_compared(tmp_path, predictions):
    other = results(tmp_path / "other.json", {"b.png": "a cat"})
    arguments = ["--against", other, "--references", write_jsonl(tmp_path), "--split", "val"]
    done = tool(
        "evaluate", "--predictions", predictions, *arguments, "--allow-partial", "--out", tmp_path / "s.json"
    )
    assert (done.code, done.out) == (2, "") and not (tmp_path / "s.json").exists()
    assert done.err == (
        f"error: {predictions} and {other}: 3 and 1 images are scored, and not the same ones; "
        "compare captions of the same images\n"
    )


SETS = {
    "a 1.png": ["A dog runs on grass", "a dog", "The dog runs!"],
    "b.png": ["the red cat.", "two cats", "two cats"],
    "c.png": ["a grass cat runs on a dog", "the red runs", "a <unk> on a"],
}


@pytest.mark.parametrize("kind", ["captions", "our own", "several rows"])
def test_diversity_of_n_captions(tmp_path, kind):
    rows = [{"image_id": name, "captions": texts} for name, texts in SETS.items()]
    if kind == "several rows":
        rows = [{"image_id": name, "caption": SETS[name][n]} for n in range(3) for name in SETS]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(rows))
    if kind == "our own":
        each = {name: [Prediction(name, text) for text in texts] for name, texts in SETS.items()}
        write_predictions(
            str(path), [replace(first, alternatives=tuple(rest)) for first, *rest in each.values()]
        )
    training = write_coco(tmp_path, {"t.png": ["two cats!", "A dog runs, on grass"]})
    arguments = ["--predictions", path, "--references", write_karpathy(tmp_path), "--split", "val"]
    several = ["--several"] if kind == "several rows" else []
    done = tool(
        "evaluate", *arguments, "--training", training, *several, "--json", "--out", tmp_path / "s.json"
    )
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    first = pycocoevalcap(VAL, {name: texts[0] for name, texts in SETS.items()})
    assert found["CIDEr-D"] == pytest.approx(first["CIDEr-D"], abs=1e-6)
    assert found["signature"]["captions_per_image"] == 3
    # a dog runs on grass the; the red cat two cats; a grass cat runs on dog the red <unk>
    assert found["Div_1"] == pytest.approx((6 / 10 + 5 / 7 + 9 / 14) / 3)
    assert found["all_vocabulary_used"] == len(
        {"a", "dog", "runs", "on", "grass", "the", "red", "cat", "two", "cats"}
    )
    assert found["all_length"] == pytest.approx((10 + 7 + 14) / 9)
    assert (found["novel_rate"], found["all_novel_rate"]) == (pytest.approx(2 / 3), pytest.approx(6 / 9))
    assert found["all_unk_rate"] == pytest.approx(1 / 31) and found["unk_rate"] == 0
    assert found["all_bad_ending_rate"] == pytest.approx(1 / 9)
    best = [max(rouge(text, VAL[name]) for text in texts) for name, texts in SETS.items()]
    assert found["oracle_ROUGE_L"] == pytest.approx(np.mean(best))
    assert 0 < found["self_CIDEr"] < 1 and 0 < found["mBleu_4"] < 1
    written = json.loads((tmp_path / "s.json").read_text())["per_image"]
    assert [each["oracle_ROUGE_L"] for each in written] == pytest.approx(best, abs=1e-6)
    assert "all_unk_rate" in tool("evaluate", *arguments, *several).out


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"image_id": "b.png", "captions": []}], "entry 0 is not"),
        ([{"image_id": "b.png", "captions": "a cat"}], "entry 0 is not"),
        ([{"image_id": "b.png", "captions": ["a cat", 7]}], "entry 0 is not"),
        ([{"image_id": "b.png", "caption": 7, "captions": ["a cat"]}], "entry 0 is not"),
        ([{"image_id": "b.png", "caption": 5}], "entry 0 is not"),
        ([{"image_id": None, "caption": "a cat"}], "entry 0 is not"),
        (["a cat"], "entry 0 is not"),
        ({"b.png": "a cat"}, "expected a list of results at the root, found dict"),
        ([], "contains no results"),
    ],
)
def test_predictions_of_a_wrong_shape(tmp_path, rows, said):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(rows))
    arguments = ["--references", write_karpathy(tmp_path), "--split", "val", "--out", tmp_path / "s.json"]
    done = tool("evaluate", "--predictions", path, *arguments)
    assert (done.code, done.out) == (2, "") and not (tmp_path / "s.json").exists()
    assert done.err.startswith(f"error: {path}: ") and said in done.err and len(done.err.splitlines()) == 1


def test_as_many_entries_of_each_image(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"image_id": name, "caption": "a"} for name in (*VAL, "b.png")]))
    arguments = ["--predictions", path, "--references", write_karpathy(tmp_path), "--split", "val"]
    done = tool("evaluate", *arguments, "--several")
    assert (done.code, done.out) == (2, "") and len(done.err.splitlines()) == 1
    assert "1 captions of image 'c.png' and 2 captions of image 'b.png'; give as many" in done.err


def test_captions_that_not_all_images_have_keep_diversity_out(tmp_path):
    rows = [{"image_id": name, "caption": text} for name, text in CAPTIONS.items()]
    rows[1]["captions"] = [rows[1]["caption"], "a cat"]  # as a search that finds fewer for some
    path = tmp_path / "p.json"
    path.write_text(json.dumps(rows))
    done = tool(
        "evaluate", "--predictions", path, "--references", write_jsonl(tmp_path), "--split", "val", "--json"
    )
    assert done.err == f"{path}: 1 to 2 captions an image, so no diversity\n"
    assert json.loads(done.out)["Bleu_4"] == pytest.approx(pycocoevalcap(VAL, CAPTIONS)["Bleu_4"], abs=1e-6)


def test_nltk_under_its_own_name(tmp_path, predictions):
    from nltk.translate.bleu_score import corpus_bleu

    arguments = [
        "--predictions",
        predictions,
        "--references",
        write_jsonl(tmp_path),
        "--split",
        "val",
        "--json",
    ]
    done = tool("evaluate", *arguments, "--metric", "NLTK-BLEU-2", "NLTK-BLEU-1")
    found = json.loads(done.out)
    tokens = (
        [[tokenize(text) for text in VAL[name]] for name in VAL],
        [tokenize(CAPTIONS[name]) for name in VAL],
    )
    assert found["NLTK_Bleu_2"] == pytest.approx(corpus_bleu(*tokens, weights=[0.5, 0.5]), abs=1e-12)
    assert found["NLTK_Bleu_1"] == pytest.approx(found["Bleu_1"], abs=1e-7) and "NLTK_Bleu_4" not in found
    assert "nltk" in found["signature"]["variants"]["NLTK-BLEU"]
    poor = results(tmp_path / "poor.json", dict.fromkeys(VAL, "a dog of no other kind"))
    done = tool("evaluate", "--predictions", poor, *arguments[2:], "--metric", "NLTK-BLEU-4")
    assert done.code == 0 and json.loads(done.out)["NLTK_Bleu_4"] < 1e-6
    assert (
        done.err == f"{poor}: {json.loads(done.out)['signature']['notes'][0]}\n" and "never match" in done.err
    )


def test_metrics_that_there_are_not(tmp_path, predictions):
    arguments = ["--predictions", predictions, "--references", write_jsonl(tmp_path), "--split", "val"]
    done = tool("evaluate", *arguments, "--metric", "BLEURT")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: --metric: unknown metric 'BLEURT'; choose from BLEU-1, BLEU-2, ")


def test_one_image(tmp_path):
    one = {"f.png": ["one, two", "one and two"]}
    predictions = results(tmp_path / "p.json", {101: "one two"})
    done = tool("evaluate", "--predictions", predictions, "--references", write_coco(tmp_path, one), "--json")
    found = json.loads(done.out)
    assert (found["CIDEr"], found["CIDEr-D"], found["Bleu_2"]) == (0, 0, pytest.approx(1))
    assert done.code == 0 and done.err.startswith(f"{predictions}: CIDEr of a single image is 0")


def test_no_text_shifts_a_caption_onto_another_image(tmp_path):
    odd = ["A dog\r runs", "on\u2028the grass", "snow\x00 \U0001f415 falls", "...", "", "a\tcat\nsleeps"]
    images = {f"{number}.jpg": [text + " here", "two\rmen run"] for number, text in enumerate(odd)}
    captions = {101 + 2 * number: text for number, text in enumerate(odd)}
    predictions = results(tmp_path / "p.json", captions)
    references = write_coco(tmp_path, images)
    done = tool(
        "evaluate",
        "--predictions",
        predictions,
        "--references",
        references,
        "--json",
        "--out",
        tmp_path / "s.json",
    )
    assert done.code == 0, done.err
    plain = ["a dog runs", "on the grass", "snow falls", "", "", "a cat sleeps"]
    expected = pycocoevalcap(
        {n: [f"{text} here", "two men run"] for n, text in enumerate(plain)}, dict(enumerate(plain))
    )
    found = json.loads(done.out)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    each = json.loads((tmp_path / "s.json").read_text())["per_image"]
    assert [entry["ROUGE_L"] > 0.5 for entry in each] == [True, True, True, False, False, True]


def test_a_caption_of_100000_words(tmp_path):
    captions = {**CAPTIONS, "b.png": "the red cat " * 33333 + "x" * 5000}
    predictions = results(tmp_path / "p.json", captions)
    done = tool(
        "evaluate",
        "--predictions",
        predictions,
        "--references",
        write_jsonl(tmp_path),
        "--split",
        "val",
        "--json",
    )
    assert done.code == 0, done.err
    found, expected = json.loads(done.out), pycocoevalcap(VAL, captions)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    assert found["length"] > 33333


def test_options_that_go_together(tmp_path, predictions):
    references = ["--references", write_jsonl(tmp_path), "--split", "val"]
    for arguments, said in (
        (["--predictions", predictions, *references, "--resamples", "7"], "are for --against"),
        (["runs/x", "--against", predictions], "--against is for --predictions"),
        (["--predictions", predictions, *references, "--seed", "0"], "are for --against"),
        (["runs/x", "--training", "c.json"], "--training is for --predictions"),
    ):
        done = tool("evaluate", *arguments)
        assert (done.code, done.out) == (2, "") and said in done.err


# --- a run -----------------------------------------------------------------------------------------------------


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
    written = json.loads((moved / "predictions_val.json").read_text())
    assert {each["image_id"]: each["caption"] for each in written} == captions
    assert set(" ".join(captions.values()).split()) <= set(WORDS)
    told = json.loads(done.out)
    assert told["split"] == "val" and told["files"]["scores"] == str(moved / "scores_val.json")
    signature = told["signature"]["search"]
    assert (signature["width"], signature["max_length"], signature["length_rule"]) == (5, 4, "sum")
    assert not (tmp_path / "runs" / "tiny").exists()
    assert "only punctuation" in (moved / "skipped.csv").read_text()  # what the data set passed over
    options = ["--search", "sample", "--search-option", "samples=3", "--search-option", "temperature=2"]
    done = tool("evaluate", moved, *options, cwd=tmp_path)
    assert done.code == 0 and "search sample, max_length=9, samples=3, temperature=2.0" in done.out
    path = moved / "predictions_val.json"
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
