"""Verdicts on systems and claims, never stronger than images and seeds support."""

import pytest

from captioning.comparison import verdicts
from captioning.comparison.results import System
from tests.helpers.comparison import length_numbers, make_comparison, make_records, make_system


def verdicts_of(comparison):
    return [finding.verdict for finding in verdicts.findings(comparison)]


@pytest.mark.parametrize(
    ("shares", "seeds", "verdict", "headline"),
    [
        ((0.9, 0.3), 3, "supported", "Supported by the data: A better than B."),
        (
            (0.9, 0.3),
            1,
            "single seed",
            "True of single trained models, not of kinds of model: A better than B.",
        ),
        ((0.6, 0.6), 3, "no clear difference", "No clear difference: "),
    ],
)
def test_verdict_and_headline(shares, seeds, verdict, headline):
    records = make_records(60)
    systems = [
        make_system(name, records, right=share, seeds=seeds, begin=number)
        for number, (name, share) in enumerate(zip("ab", shares, strict=True))
    ]
    comparison, _, _ = make_comparison(records, *systems)
    assert verdicts_of(comparison) == [verdict]
    text = verdicts.headline(comparison, split="val")
    assert text.startswith("CIDEr-D on 60 images of `val`. " + headline)
    assert ("A better than B" in text) == (verdict != "no clear difference")


def test_a_difference_between_overlapping_seeds_stays_open_however_small_p_is():
    records = make_records(60)
    good, bad = (
        make_system(name, records, right=share, seeds=2) for name, share in (("a", 0.95), ("b", 0.2))
    )
    mixed = System("b", "B", [bad.runs[0], good.runs[1]._replace(name="b-seed1")])
    comparison, _, _ = make_comparison(records, System("a", "A", good.runs), mixed)
    test = comparison["pairs"][0]["metrics"]["CIDEr-D"]
    assert test["holm"] < 0.05 and not test["separated"]
    assert verdicts_of(comparison) == ["seeds overlap"]
    assert "Open, because seeds overlap: A better than B." in verdicts.headline(comparison, split="val")


def test_the_better_system_comes_first_with_its_difference_and_interval_positive():
    records = make_records(60)
    worse = make_system("a", records, right=0.3, seeds=2, begin=1)
    better = make_system("b", records, right=0.9, seeds=2, begin=2)
    comparison, _, _ = make_comparison(records, worse, better)
    test = comparison["pairs"][0]["metrics"]["CIDEr-D"]
    assert test["high"] < 0
    (finding,) = verdicts.findings(comparison)
    assert (finding.better, finding.worse) == ("b", "a")
    assert f"interval over images {-100 * test['high']:.1f} to {-100 * test['low']:.1f}" in finding.sentence


def test_lower_scores_are_better_where_the_metric_says_so():
    records = make_records(60)
    high = make_system("a", records, right=0.9, seeds=2, begin=2)
    low = make_system("b", records, right=0.3, seeds=2, begin=1)
    comparison, _, _ = make_comparison(records, high, low)
    (finding,) = verdicts.findings(comparison | {"higher_is_better": False})
    assert (finding.better, finding.worse, finding.verdict) == ("b", "a", "supported")


def test_limits_name_the_split_that_chose_the_epoch_and_the_part_of_chance():
    records = make_records(12)
    systems = [make_system(name, records, right=0.5, seeds=3) for name in "ab"]
    comparison, _, _ = make_comparison(records, *systems)
    text = " ".join(verdicts.limits(comparison, split="val", chosen_on="val"))
    assert "chosen on `val`" in text and "in 1 of 10 cases" in text
    assert "chosen on" not in " ".join(verdicts.limits(comparison, split="test", chosen_on="val"))


@pytest.mark.parametrize(
    ("values", "answers"),
    [
        (
            {"lstm": (1, 0.9), "rnn": (1, 0.1), "transformer": (1, 0.99), "slow": 2.0},
            ("yes", "yes", "depends"),
        ),
        ({"lstm": (1, 0.2), "rnn": (0.3, 0.2), "transformer": (1, 0.99)}, ("depends", "no", "yes")),
        (
            {"lstm": (1, 0.2), "rnn": (1, 0.2), "transformer": (1, 0.99), "slow": 1.2, "decode": 3.0},
            ("no", "depends", "depends"),
        ),
        ({"lstm": (1, 0.9), "rnn": (1, 0.1), "transformer": (1, 0.5)}, ("yes", "no", "no")),
        ({"lstm": (0.13, 0.12), "rnn": (0.12, 0.12), "transformer": (0.13, 0.12)}, ("open", "no", "open")),
    ],
)
def test_claims_are_answered_from_the_numbers(values, answers):
    claims = verdicts.length_claims(length_numbers(**values))
    assert tuple(claim.answer for claim in claims) == answers
    assert all(f"{claim.claim}”: **{claim.answer}**" in verdicts.length_headline(claims) for claim in claims)
    assert all("{" not in claim.reason for claim in claims)


def test_claims_without_their_systems_are_not_measured():
    study = length_numbers(lstm=(1, 1), rnn=(1, 1), transformer=(1, 1))
    for key in ("quality", "recall", "agreement", "costs"):
        study[key].pop("lstm", None)
    assert {claim.answer for claim in verdicts.length_claims(study)} == {"not measured"}
