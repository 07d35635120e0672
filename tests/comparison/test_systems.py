"""Reading the records of runs: learning curves, torn lines and groups by settings."""

import json

import pytest

from captioning.comparison import systems
from captioning.comparison.results import SystemRun
from captioning.errors import UserError


def test_learning_curves_count_seconds_tokens_and_flops():
    lines = [
        {"step": 4, "train/loss": 3.0},
        {"step": 5, "speed/tokens_per_s": 10.0, "speed/seconds": 2.0},
        {"step": 10, "speed/tokens_per_s": 20.0, "speed/seconds": 3.0},
        {"step": 10, "val/CIDEr-D": 0.4, "val/loss": 2.5},
    ]
    curve = systems.learning_curve(lines, "CIDEr-D")
    point = {"step": 10, "score": 0.4, "loss": 2.5, "seconds": 5.0, "tokens": 80.0}
    assert curve == [point]
    assert systems.with_flops(SystemRun("a", 0, {}, curve), 5e11).curve == [{**point, "teraflop": 40.0}]
    del lines[1]["speed/seconds"]
    curve = systems.learning_curve(lines, "CIDEr-D")
    assert curve == [{"step": 10, "score": 0.4, "loss": 2.5}]
    assert systems.with_flops(SystemRun("a", 0, {}, curve), 5e11).curve == curve


def test_lines_torn_by_a_crash_are_skipped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "a": 1}\n{"step": 5, "a"')
    assert systems.metrics_lines(tmp_path) == [{"step": 3, "a": 1}]
    (tmp_path / "timings.jsonl").write_text('{"step": 3, "b": 2}\n')
    assert systems.metrics_lines(tmp_path) == [{"step": 3, "b": 2}, {"step": 3, "a": 1}]


def test_captions_of_another_search_are_not_taken_for_the_run_s_own(tmp_path):
    run = systems.RunSettings(tmp_path, {"seed": 3, "search": {"kind": "beam", "width": 5, "new": 1}})
    (tmp_path / "checkpoints" / "last").mkdir(parents=True)
    progress = {"step": 70, "epochs_before": 2, "epoch": 5, "done": True}
    (tmp_path / "checkpoints" / "last" / "progress.json").write_text(json.dumps(progress))
    (tmp_path / "predictions_val.json").write_text('[{"image_id": 1, "caption": "a dog"}]')
    for width, fits in ((5, True), (8, False)):
        search = {"kind": "beam", "width": width, "old": 2}
        (tmp_path / "scores_val.json").write_text(json.dumps({"signature": {"search": search}}))
        if fits:
            read = systems.read_run(run, "val", metric="CIDEr-D")
            assert read.captions == {1: "a dog"} and read.facts == {"updates": 70, "epochs": 7}
        else:
            with pytest.raises(
                UserError, match="another search than the run's own; make it anew by captioning eval"
            ):
                systems.read_run(run, "val", metric="CIDEr-D")


def test_runs_that_differ_only_in_their_seed_are_one_system(tmp_path):
    def settings(name, seed, epochs):
        values = {"name": name, "seed": seed, "training": {"epochs": epochs}}
        return systems.RunSettings(tmp_path / name, values)

    runs = [settings("lstm-seed0", 0, 3), settings("other", 0, 5), settings("lstm-seed1", 1, 3)]
    groups = systems.group_runs(runs)
    assert {name: [run.seed for run in group] for name, group in groups.items()} == {
        "lstm": [0, 1],
        "other": [0],
    }
