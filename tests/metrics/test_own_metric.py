"""A metric outside the package, named "module:Class"."""

from pathlib import Path

import numpy as np
import pytest

from captioning.errors import UserError
from captioning.metrics import METRICS, get_metric, score
from captioning.metrics.evaluation import evaluate
from captioning.metrics.significance import comparable_metrics, paired_bootstrap

MODULE = """
import numpy as np
from captioning.metrics import Metric, mean_score, score_from_statistics


class LengthError(Metric):
    name = "Length-error"
    description = "tokens more or less than the nearest reference, mean over images"
    higher_is_better = False
    scale = 1.0

    def score(self, captions):
        return mean_score([
            min(abs(len(candidate) - len(reference)) for reference in references)
            for references, candidate in captions.pairs()
        ])


class Precision(Metric):
    name = "Precision"
    description = "share of all tokens that occur in a reference of the image"

    def score(self, captions):
        rows = [
            (sum(any(token in reference for reference in references) for token in candidate), len(candidate))
            for references, candidate in captions.pairs()
        ]
        return score_from_statistics(np.array(rows), lambda sums: sums[..., 0] / sums[..., 1])


class Unnamed(Metric):
    description = "none"

    def score(self, captions):
        return mean_score([0.0])


class Taken(Unnamed):
    name = "CIDEr-D"


class Unfinished(Metric):
    name, description = "Unfinished", "none"


class Other:
    pass
"""
REFERENCES = [[["a", "dog"], ["a", "dog", "runs"]], [["two", "cats"]], [["snow"]]]
A, B = [["a", "dog"], ["two", "men", "run"], ["snow"]], [["a"], ["two", "cats"], ["ice", "snow", "a", "b"]]


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working directory, a new one for each test."""
    name = f"module_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_scores_and_comparison_of_two_systems(module: str) -> None:
    metrics = [f"{module}:LengthError", f"{module}:Precision", "BLEU-1"]
    a, b = score(REFERENCES, A, metrics=metrics), score(REFERENCES, B, metrics=metrics)
    assert a.corpus["Length-error"] == pytest.approx(1 / 3) and a.corpus["Precision"] == pytest.approx(4 / 6)
    assert b.per_image["Length-error"].tolist() == [1, 0, 3]
    names = comparable_metrics(a)
    assert names == ["Length-error", "Precision", "BLEU-1"]
    compared = paired_bootstrap(a, b, metrics=names, resamples=53, seed=7)
    drawn = np.random.default_rng(7).integers(0, 3, (53, 3))
    errors = np.array([0, 1, 0])[drawn].mean(1) - np.array([1, 0, 3])[drawn].mean(1)
    precisions = [
        np.array(hits)[drawn].sum(1) / np.array(lengths)[drawn].sum(1)
        for hits, lengths in (((2, 1, 1), (2, 3, 1)), ((1, 2, 1), (1, 2, 4)))
    ]
    for name, differences in (("Length-error", errors), ("Precision", precisions[0] - precisions[1])):
        interval = compared[name].low, compared[name].high
        assert interval == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])))


def test_evaluation_prints_and_describes_it(module: str) -> None:
    evaluation = evaluate(
        {1: ["a dog"], 2: ["two cats"]},
        {1: "a dog", 2: "two cats and a dog"},
        split_name="val",
        search=None,
        metrics=["BLEU-1", f"{module}:LengthError"],
        captions={1: ["a dog", "a"], 2: ["two cats and a dog", "cats"]},
    )
    assert evaluation.scores["Length-error"] == 1.5
    assert [line.split() for line in evaluation.lines() if line.startswith("Length-error")] == [
        ["Length-error", "1.50"]
    ]
    assert evaluation.signature["variants"]["Length-error"].startswith("tokens more or less")


def test_metrics_that_are_refused(module: str) -> None:
    for name, message in (
        ("Unnamed", "has no name; set it to a string in the class"),
        ("Taken", "is named CIDEr-D, as a metric of this package is"),
        ("Unfinished", "cannot be created without arguments"),
        ("Other", "is not a subclass of captioning.metrics.Metric"),
        ("None_there", f"{module} has no None_there"),
    ):
        with pytest.raises(UserError, match=message):
            get_metric(f"{module}:{name}")
    with pytest.raises(UserError, match="no module nowhere_at_all"):
        get_metric("nowhere_at_all:X")
    with pytest.raises(
        ValueError, match=r"unknown metric 'Bleu_4'; choose from BLEU-1, .* or give module:Class"
    ):
        get_metric("Bleu_4")
    assert get_metric("METEOR") is METRICS["METEOR"]
