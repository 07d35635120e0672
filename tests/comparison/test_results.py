"""Scores of several systems: pooled seeds, corrected tests, scores by length, and extreme images."""

import statistics

import pytest

from captioning.comparison import results
from captioning.comparison.results import System, SystemRun
from captioning.errors import UserError
from tests.helpers.comparison import make_comparison, make_records, make_system


def test_differences_are_of_the_mean_scores_of_the_seeds():
    records = make_records(17)
    systems = [make_system(name, records, right=share, seeds=3) for name, share in (("a", 0.6), ("b", 0.4))]
    comparison, scored, _ = make_comparison(records, *systems)
    assert "Welch" in comparison["method"]
    for name, test in comparison["pairs"][0]["metrics"].items():
        a, b = (statistics.fmean(run.scores[name] for run in system.evaluations) for system in scored)
        assert (test["a"], test["b"]) == pytest.approx((a, b))
        assert test["difference"] == pytest.approx(a - b) and test["degrees"] > 1
    assert scored[0].per_image("CIDEr-D").mean() == pytest.approx(
        statistics.fmean(run.scores["CIDEr-D"] for run in scored[0].evaluations)
    )


def test_only_pairs_on_the_primary_metric_are_one_corrected_family():
    records = make_records(30)
    systems = [
        make_system(name, records, right=share, seeds=1, begin=number)
        for number, (name, share) in enumerate((("a", 0.5), ("b", 0.55), ("c", 0.8)))
    ]
    comparison, _, _ = make_comparison(records, *systems)
    tests = [pair["metrics"]["CIDEr-D"] for pair in comparison["pairs"]]
    assert len(tests) == 3
    smallest = min(tests, key=lambda test: test["p"])
    assert smallest["holm"] == pytest.approx(min(1, 3 * smallest["p"]))
    assert all(test["holm"] >= test["p"] and test["separated"] is None for test in tests)
    others = [
        test for pair in comparison["pairs"] for name, test in pair["metrics"].items() if name != "CIDEr-D"
    ]
    assert len(others) == 3 * 6 and not any("holm" in test for test in others)


def test_groups_by_reference_length_are_scored_on_their_own_images():
    records = make_records(31)
    comparison, scored, common_records = make_comparison(
        records, make_system("a", records, right=0.5, seeds=2)
    )
    assert sum(row["images"] for row in comparison["by_length"]) == 31
    for row in comparison["by_length"]:
        chosen = [
            number
            for number, record in enumerate(common_records)
            if row["from"] <= statistics.fmean(len(text.split()) for text in record.captions) <= row["to"]
        ]
        assert len(chosen) == row["images"]
        for seed, evaluation in enumerate(scored[0].evaluations):
            mean = evaluation.metrics.per_image["CIDEr-D"][chosen].mean()
            assert row["systems"]["a"]["CIDEr-D"]["seeds"][seed] == pytest.approx(mean)


def test_images_without_a_caption_of_every_run_are_left_out_with_a_remark():
    records = make_records(11)
    complete, partial = (make_system(name, records, right=0.5, seeds=1) for name in "ab")
    captions = {image_id: text for image_id, text in partial.runs[0].captions.items() if image_id != 3}
    partial = partial._replace(runs=[partial.runs[0]._replace(captions=captions)])
    comparison, _, common_records = make_comparison(records, complete, partial)
    assert [record.image_id for record in common_records] == [i for i in range(11) if i != 3]
    assert comparison["images"] == 10 and "10 of the split's 11" in comparison["remarks"][0]
    with pytest.raises(UserError, match="not in val"):
        results.score_systems([complete], records[:5], split="val")


def test_images_with_the_largest_differences_and_the_worst_scores():
    records = make_records(9)
    nonsense = {record.image_id: "zebra zebra" for record in records}
    good = System("a", "A", [SystemRun("a", 0, {**nonsense, 4: records[4].captions[0], 7: "a dog"})])
    bad = System("b", "B", [SystemRun("b", 0, {**nonsense, 7: records[7].captions[1]})])
    _, scored, common_records = make_comparison(records, good, bad)
    metric = {"primary": "CIDEr-D", "higher_is_better": True}
    above = results.largest_differences(scored, common_records, "a", "b", count=3, **metric)
    assert [image.record.image_id for image in above] == [4]
    below = results.largest_differences(scored, common_records, "b", "a", count=3, **metric)
    assert [image.record.image_id for image in below] == [7]
    worst = results.worst_scores(scored, common_records, count=7, **metric)
    assert {image.record.image_id for image in worst} == set(range(9)) - {4, 7}
    lower = {"primary": "CIDEr-D", "higher_is_better": False}
    images = results.largest_differences(scored, common_records, "a", "b", count=3, **lower)
    assert [image.record.image_id for image in images] == [7]
    same = {**nonsense, 5: records[5].captions[0]}
    systems = [System(name, name, [SystemRun(name, 0, same)]) for name in "ab"]
    _, scored, common_records = make_comparison(records, *systems)
    (image,) = results.worst_scores(scored, common_records, count=1, **lower)
    assert image.record.image_id == 5
