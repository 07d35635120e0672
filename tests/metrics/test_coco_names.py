"""Metric names in COCO-style JSON files and everywhere else."""

import json

import pytest

from captioning.metrics.coco_names import from_coco_names, read_scores, to_coco_name, to_coco_names

PAIRS = {
    "BLEU-1": "Bleu_1",
    "BLEU-4": "Bleu_4",
    "ROUGE-L": "ROUGE_L",
    "METEOR": "METEOR",
    "CIDEr": "CIDEr",
    "CIDEr-D": "CIDEr-D",
    "SPICE": "SPICE",
    "NLTK-BLEU-2": "NLTK_Bleu_2",
    "mBLEU-4": "mBleu_4",
    "Div-2": "Div_2",
    "self-CIDEr": "self_CIDEr",
    "oracle-ROUGE-L": "oracle_ROUGE_L",
    "bad_ending_rate": "bad_ending_rate",
}


@pytest.mark.parametrize(("ours", "coco"), PAIRS.items())
def test_names_in_both_spellings(ours, coco):
    assert to_coco_name(ours) == coco
    assert to_coco_names({ours: 0.5}) == {coco: 0.5} and from_coco_names({coco: 0.5}) == {ours: 0.5}


def test_scores_are_read_under_our_names(tmp_path):
    path = tmp_path / "scores_test.json"
    path.write_text(json.dumps({"scores": dict.fromkeys(PAIRS.values(), 0.25), "signature": {}}))
    assert read_scores(path) == dict.fromkeys(PAIRS, 0.25)
