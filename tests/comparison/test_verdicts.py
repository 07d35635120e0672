"""Verdicts on systems, never stronger than images and seeds support."""

import pytest

from captioning.comparison import verdicts
from captioning.comparison.results import System
from tests.helpers.comparison import make_comparison, make_records, make_system


def verdicts_of(comparison):
    return [finding.verdict for finding in verdicts.findings(comparison)]


@pytest.mark.parametrize(
    ("shares", "seeds", "verdict", "headline"),
    [
        ((0.9, 0.3), 3, "supported", "Supported by the data: A better than B."),
        ((0.99, 0.02), 2, "few seeds", "Open, because of too few seeds: A better than B."),
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


def test_a_difference_that_other_seeds_may_reverse_is_not_clear():
    """Of one system a seed failed: averaged over seeds the images alone would show a difference."""
    records = make_records(60)
    good, bad = (
        make_system(name, records, right=share, seeds=3) for name, share in (("a", 0.95), ("b", 0.2))
    )
    mixed = System("b", "B", [bad.runs[0], *good.runs[1:]])
    comparison, scored, _ = make_comparison(records, System("a", "A", good.runs), mixed)
    test = comparison["pairs"][0]["metrics"]["CIDEr-D"]
    assert test["p"] > 0.05 and not test["separated"]
    assert verdicts_of(comparison) == ["no clear difference"]
    difference = scored[0].per_image("CIDEr-D") - scored[1].per_image("CIDEr-D")
    assert difference.mean() / difference.std() * len(difference) ** 0.5 > 3


def test_without_corrected_significance_nothing_is_supported():
    records = make_records(60)
    systems = [make_system(name, records, right=share, seeds=3) for name, share in (("a", 0.9), ("b", 0.3))]
    comparison, _, _ = make_comparison(records, *systems)
    test = comparison["pairs"][0]["metrics"]["CIDEr-D"]
    assert verdicts_of(comparison) == ["supported"] and test["holm"] < 0.05
    test["holm"] = 0.051
    assert verdicts_of(comparison) == ["no clear difference"]


def test_the_smallest_p_that_resamples_can_show_is_a_bound():
    assert verdicts.format_p(0.0501) == "0.050" and verdicts.format_p(0.0005, at_floor=True) == "< 0.001"
    assert verdicts.format_p(0.0025, at_floor=True) == "≤ 0.003"
    records = make_records(60)
    systems = [make_system(name, records, right=share, seeds=1) for name, share in (("a", 0.99), ("b", 0.01))]
    comparison, _, _ = make_comparison(records, *systems, resamples=100)
    (finding,) = verdicts.findings(comparison)
    assert "interval over images " in finding.sentence and "corrected p ≤ 0.010" in finding.sentence


def test_the_better_system_comes_first_with_its_difference_and_interval_positive():
    records = make_records(60)
    worse = make_system("a", records, right=0.3, seeds=2, begin=1)
    better = make_system("b", records, right=0.9, seeds=2, begin=2)
    comparison, _, _ = make_comparison(records, worse, better)
    test = comparison["pairs"][0]["metrics"]["CIDEr-D"]
    assert test["high"] < 0
    (finding,) = verdicts.findings(comparison)
    assert (finding.better, finding.worse) == ("b", "a")
    assert (
        f"interval over images and seeds {-100 * test['high']:.1f} to {-100 * test['low']:.1f}"
        in finding.sentence
    )


def test_lower_scores_are_better_where_the_metric_says_so():
    records = make_records(60)
    high = make_system("a", records, right=0.9, seeds=3, begin=2)
    low = make_system("b", records, right=0.3, seeds=3, begin=1)
    comparison, _, _ = make_comparison(records, high, low)
    (finding,) = verdicts.findings(comparison | {"higher_is_better": False})
    assert (finding.better, finding.worse, finding.verdict) == ("b", "a", "supported")


def test_limits_name_what_the_numbers_cannot_show():
    records = make_records(12)
    systems = [make_system(name, records, right=0.5, seeds=3) for name in "ab"]
    comparison, _, _ = make_comparison(records, *systems)
    text = " ".join(verdicts.limits(comparison, split="val", chosen_on="val"))
    assert (
        "the best epoch of each run were" not in text and "best epoch of each run was chosen on `val`" in text
    )
    assert "With 3 seeds per system" in text and "up to 8 %" in text and "rising" not in text
    a, b = comparison["systems"]
    a |= {"learning_rate": 0.004, "learning_rates": {"0.002": 0.1, "0.004": 0.2}}
    b |= {"learning_rate": 0.004, "learning_rates": {"0.002": 0.1, "0.004": 0.2, "0.008": None}}
    b["curves"] = [[{"step": 1, "score": 0.3}, {"step": 2, "score": 0.4}], [], []]
    text = " ".join(verdicts.limits(comparison, split="test", chosen_on="val"))
    assert "chosen on" not in text
    assert "The learning rate of A is" in text and "The validation score of B was best at the last" in text
    text = " ".join(verdicts.limits(comparison, split="val", chosen_on="val"))
    assert "The learning rates and the best epoch of each run were chosen on `val`" in text
