"""Validation: the metrics it computes and how the best model is chosen by one of them."""

import pytest

from captioning.errors import UserError
from tests.helpers.training import experiment, metrics_of, tiny_settings

MODULE = """
from captioning.metrics import Metric, mean_score

ERRORS = iter([3.25, 1.5, 2.75])


class Error(Metric):
    name = "Error"
    description = "a number a validation, lower is better"
    higher_is_better = False
    scale = 1.0

    def score(self, captions):
        return mean_score([next(ERRORS)] * len(captions.candidates))
"""


def test_a_metric_outside_the_package_chooses_the_model(tmp_path, monkeypatch):
    (tmp_path / "error_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = tiny_settings(tmp_path, "own", epochs=3)
    settings["training"]["metric"] = "error_of_a_test:Error"
    printed = []
    run = experiment(settings, log=printed.append)
    progress = run.train(resume=False)
    lines = [line for line in metrics_of(run.folder) if "val/loss" in line]
    assert [line["val/Error"] for line in lines] == [3.25, 1.5, 2.75] and "val/BLEU-4" in lines[0]
    assert (progress.best, progress.best_epoch) == (1.5, 2)
    epochs = [line.replace("*best", "best").split() for line in printed if line.startswith("epoch")]
    assert [("Error" in words, "best" in words) for words in epochs] == [
        (True, True),
        (True, True),
        (True, False),
    ]
    card = (run.folder / "model" / "README.md").read_text()
    assert "chosen by Error on" in card and "| Error | 1.5 |" in card


def test_metrics_that_cannot_choose_a_model(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, "refused")
    settings["training"]["metric"] = "Bleu_4"
    with pytest.raises(UserError, match=r"training\.metric.*unknown metric 'Bleu_4'; choose from BLEU-1"):
        experiment(settings)
    settings["training"]["metric"] = "METEOR"
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="METEOR: there is no Java here"):
        experiment(settings).train(resume=False)
