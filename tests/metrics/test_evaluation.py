"""Scoring a split from raw text: which images count, what the signature says, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioning.errors import UserError
from captioning.metrics import (
    METRICS,
    NAMES,
    DocumentFrequencies,
    Metric,
    MetricInput,
    MetricScore,
    ReferenceCounts,
    score,
)
from captioning.metrics.caption_statistics import TrainingCaptions
from captioning.metrics.evaluation import evaluate
from captioning.metrics.reference_set import ReferenceSet
from captioning.metrics.significance import comparable_metrics
from captioning.text.tokenizer import tokenize

REFERENCES: dict[int | str, list[str]] = {
    11: ["A dog runs on the grass.", "The dog can't stop"],
    7: ["Two men in red", "two men", "Men, in red!"],
    5: ["Snow on a mountain"],
    3: ["a <unk> on a <unk> mat"],
    2: ["people at a table", "a table with people"],
}
PREDICTIONS: dict[int | str, str] = {
    11: "A dog can't run",
    7: "two men in a",
    5: "Snow on a mountain.",
    3: "a <unk> on a <unk> mat",
    2: "",
}


def run(predictions: Any = PREDICTIONS, **more: Any) -> Any:
    return evaluate(REFERENCES, predictions, split_name="val", search={"kind": "beam", "width": 3}, **more)


def test_scores_are_those_of_the_tokens_in_the_splits_order() -> None:
    evaluation = run(dict(reversed(PREDICTIONS.items())))
    assert evaluation.image_ids == list(REFERENCES)
    tokens = [tokenize(PREDICTIONS[key]) for key in REFERENCES]
    tokens[3] = [
        "a",
        "?",
        "on",
        "a",
        "?",
        "mat",
    ]  # "<unk>" must match nothing: not even itself in a reference
    expected = score([[tokenize(text) for text in texts] for texts in REFERENCES.values()], tokens)
    for name, value in expected.corpus.items():
        assert evaluation.scores[name] == pytest.approx(value, abs=1e-12)


def test_unknown_word_matches_nothing() -> None:
    references: dict[int | str, list[str]] = {1: ["<unk>"], 2: ["a dog"]}
    evaluation = evaluate(references, [(1, "<unk>"), (2, "a dog")], split_name="val", search=None)
    assert evaluation.metrics.per_image["BLEU-1"].round(6).tolist() == [0, 1]


def test_what_captions_are_like() -> None:
    scores = run().scores
    assert scores["length"] == pytest.approx((5 + 4 + 4 + 6 + 0) / 5)
    words = "a dog ca n't run two men in snow on mountain mat"
    assert scores["vocabulary_used"] == len(words.split())
    assert scores["unk_rate"] == pytest.approx(2 / 19)
    assert scores["bad_ending_rate"] == pytest.approx(1 / 5)
    assert scores["empty_rate"] == pytest.approx(1 / 5)


def without(*keys: int) -> dict[int | str, str]:
    return {key: text for key, text in PREDICTIONS.items() if key not in keys}


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (without(7, 3), r"2 images have no prediction \(7, 3\).*--allow-partial"),
        ({**PREDICTIONS, 99: "x", "98": "y"}, r"2 predictions are of images that are not in it \(99, '98'\)"),
        ([*PREDICTIONS.items(), (7, "again")], r"1 image ids are captioned twice \(7\)"),
        ({str(key): text for key, text in PREDICTIONS.items()}, "ids differ in type: int and str"),
        ({}, "no prediction is of one of its images"),
    ],
)
def test_ids_must_be_those_of_the_split(predictions: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(predictions)


def test_many_missing_ids_are_counted_and_five_named() -> None:
    references: dict[int | str, list[str]] = {number: ["a dog"] for number in range(100, 117)}
    with pytest.raises(UserError, match=r"16 images have no prediction \(101, 102, 103, 104, 105, \.\.\.\)"):
        evaluate(references, [(100, "a dog")], split_name="val", search=None)


@pytest.mark.parametrize(
    ("references", "message"),
    [({}, "has no images"), ({1: ["a"], 2: []}, "1 images have no reference caption")],
)
def test_references_there_must_be(references: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(references, [(1, "a"), (2, "a")], split_name="val", search=None)


def test_a_part_is_scored_on_demand_and_says_so_beside_each_number() -> None:
    whole, part = run(), run({**without(2), 99: "other"}, allow_partial=True)
    assert part.signature["coverage"] == {"images": 5, "scored": 4, "share": 0.8, "passed_over": 1}
    assert all(line.endswith("on 4 of 5 images") for line in part.lines())
    assert not any("images" in line for line in whole.lines())
    # an image scores the same in either case: document frequencies stay those of the whole split
    assert part.metrics.per_image["CIDEr-D"].tolist() == whole.metrics.per_image["CIDEr-D"][:4].tolist()
    assert part.scores["CIDEr-D"] > whole.scores["CIDEr-D"]  # why a part is never scored unasked


def test_signature() -> None:
    signature = run().signature
    assert json.loads(json.dumps(signature)) == signature
    assert signature["split"] == "val" and signature["clean_up"] == "none"
    assert signature["search"] == {"kind": "beam", "width": 3}
    assert signature["document_frequencies"] == "references of split val (5 images)"
    assert set(signature["variants"]) == {"BLEU", "ROUGE-L", "CIDEr", "CIDEr-D"}
    assert {"split_fingerprint", "predictions_fingerprint", "tokenizer", "code"} <= set(signature)
    assert run(metrics=["BLEU-4"]).signature["variants"].keys() == {"BLEU"}


def test_fingerprints_follow_the_content_not_the_order() -> None:
    one = run().signature
    backwards = evaluate(
        dict(reversed(REFERENCES.items())), PREDICTIONS, split_name="val", search=None
    ).signature
    other = evaluate(
        {**REFERENCES, 5: ["Snow"]}, {**PREDICTIONS, 5: "x"}, split_name="val", search=None
    ).signature
    for key in ("split_fingerprint", "predictions_fingerprint"):
        assert one[key] == backwards[key] != other[key]


def test_other_document_frequencies_are_named() -> None:
    training = [[tokenize(text) for text in texts] for texts in [["a dog"], ["two men"], ["a man on grass"]]]
    frequencies = DocumentFrequencies.of(ReferenceCounts(training))
    evaluation = run(frequencies=frequencies)
    assert evaluation.signature["document_frequencies"] == f"table {frequencies.fingerprint()} of 3 images"
    assert evaluation.scores["CIDEr-D"] != run().scores["CIDEr-D"]


def test_reference_set_serves_many_evaluations() -> None:
    references = ReferenceSet(REFERENCES, split_name="val")
    first = evaluate(references, PREDICTIONS, split_name="val", search={"kind": "beam", "width": 3})
    assert first.scores == run().scores and first.signature == run().signature
    with pytest.raises(ValueError, match="'val'"):
        evaluate(references, PREDICTIONS, split_name="test", search=None)


def test_scores_file(tmp_path: Path) -> None:
    evaluation = run()
    evaluation.write(tmp_path / "scores_val.json")
    written = json.loads((tmp_path / "scores_val.json").read_text())
    assert written["signature"] == evaluation.signature
    assert list(written["scores"].values()) == list(evaluation.scores.values())
    coco_names = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr", "CIDEr-D"]
    assert list(written["scores"])[: len(NAMES)] == coco_names
    assert [entry["image_id"] for entry in written["per_image"]] == list(REFERENCES)
    each = [entry["CIDEr-D"] for entry in written["per_image"]]
    assert each == pytest.approx(evaluation.metrics.per_image["CIDEr-D"].tolist(), abs=1e-6)


def test_without_java_the_others_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    evaluation = run(metrics=[*NAMES, "METEOR", "SPICE", "NLTK-BLEU-1"])
    assert set(NAMES) | {"NLTK-BLEU-1"} <= evaluation.scores.keys()
    assert not {"METEOR", "SPICE"} & evaluation.scores.keys()
    notes = evaluation.signature["notes"]
    assert [note.split(":")[0] for note in notes] == ["METEOR", "SPICE"]
    assert "METEOR" not in evaluation.signature["variants"]


def test_scores_of_java_stand_beside_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = []

    class StandIn(Metric):
        name = "METEOR"
        description = "as a test has it"

        def score(self, captions: MetricInput) -> MetricScore:
            given.append((captions.references.tokens, captions.candidates))
            return MetricScore(0.31, np.array([0.2, 0.3, 0.4, 0.1, 0.0]))

    monkeypatch.setitem(METRICS, "METEOR", StandIn())
    evaluation = run(metrics=[*NAMES, "METEOR"])
    [(references, candidates)] = given
    assert (
        candidates[0] == ["a", "dog", "ca", "n't", "run"] and candidates[3][1].isspace()
    )  # no reference has that
    assert references[1][2] == ["men", "in", "red"]
    assert evaluation.scores["METEOR"] == 0.31
    assert evaluation.signature["variants"]["METEOR"] == "as a test has it"
    evaluation.write(tmp_path / "s.json")
    written = json.loads((tmp_path / "s.json").read_text())["per_image"]
    assert [each["METEOR"] for each in written] == [0.2, 0.3, 0.4, 0.1, 0.0]
    # its corpus score is not the mean of these, so nothing can be said of a resampled corpus
    assert comparable_metrics(evaluation.metrics) == list(NAMES)
    with pytest.raises(ValueError, match="unknown metric 'BLEURT'"):
        run(metrics=["BLEURT"])


def test_new_captions_are_those_with_other_tokens() -> None:
    seen = TrainingCaptions(["a DOG can't run!", "snow, on a mountain", "Snow on a mountain."])
    evaluation = run(training=seen)
    assert len(seen.captions) == 2
    assert evaluation.scores["novel_rate"] == pytest.approx(3 / 5)
    assert evaluation.signature["training_captions"] == f"{seen.fingerprint} of 2 captions"
    assert run().signature["training_captions"] is None and "novel_rate" not in run().scores


def test_the_signature_covers_every_caption_and_the_missing_images() -> None:
    captions = {key: ["a dog", "two men"] for key in REFERENCES}
    other = captions | {7: ["a dog", "two dogs"]}
    one, same, another = (
        run(captions=given).signature["predictions_fingerprint"]
        for given in (captions, dict(captions), other)
    )
    assert one == same != another
    assert run().signature["coverage"] == {"images": 5, "scored": 5, "share": 1, "passed_over": 0}
    coverage = run(missing=3).signature["coverage"]
    assert coverage == {"images": 8, "scored": 5, "share": 5 / 8, "passed_over": 0}
    assert all("on 5 of 8 images" in line for line in run(missing=3).lines())


@pytest.mark.parametrize("wrong", [{7: ["a"]}, {7: ["a", "b", "c"]}, {7: []}])
def test_diversity_needs_as_many_captions_of_each(wrong: Any) -> None:
    captions = {key: ["a dog", "two men"] for key in REFERENCES} | wrong
    with pytest.raises(UserError, match="as many captions of each image, and two at least; there are"):
        run(captions=captions)
    with pytest.raises(UserError, match="there are 1 to 1"):
        run(captions={key: ["a"] for key in REFERENCES})


def test_characters_are_scored_as_words_between_spaces() -> None:
    references = {1: ["一只狗在跑。", "狗在草地上"], 2: ["两只 猫", "猫在睡觉"]}
    predictions = {1: "一只狗 在草地上", 2: "猫！"}
    spaced = {key: [" ".join(text) for text in texts] for key, texts in references.items()}
    by_characters, by_spaces = (
        evaluate(
            ReferenceSet(texts, split_name="val", tokenizer=tokenizer),
            predictions if tokenizer == "characters" else {k: " ".join(v) for k, v in predictions.items()},
            split_name="val",
            search=None,
            captions={key: [text, text] for key, text in predictions.items()} if tokenizer == "characters" else None,
            training=TrainingCaptions(["猫"], tokenizer=tokenizer),
        )
        for tokenizer, texts in (("characters", references), ("whitespace", spaced))
    )  # fmt: skip
    for name, value in by_spaces.scores.items():
        assert by_characters.scores[name] == pytest.approx(value), name
    assert by_characters.scores["length"] == 4 and by_characters.scores["novel_rate"] == 0.5
    assert by_characters.signature["tokenizer"].startswith("characters with their combining marks")
    with pytest.raises(UserError, match=r"text\.tokenizer=characters"):
        ReferenceSet({1: ["一只狗在跑步"]}, split_name="val")
