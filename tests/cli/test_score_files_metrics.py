"""captioning evaluate --predictions: two systems, n captions an image, more metrics, unusual captions."""

import json
from dataclasses import replace

import numpy as np
import pytest

from captioning.records import Prediction, write_predictions
from captioning.text.tokenizer import tokenize
from tests.helpers.running import tool
from tests.helpers.scoring import (
    CAPTIONS,
    METRICS,
    VAL,
    pycocoevalcap,
    results,
    write_coco,
    write_jsonl,
    write_karpathy,
)

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
    assert (
        "1 captions of image 'c.png' and 2 captions of image 'b.png'; give all images the same number"
        in done.err
    )


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
