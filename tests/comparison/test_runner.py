"""Running a study: resumed where it was interrupted, nothing done twice, diverged trials survived."""

import json
import math
import shutil
import threading
from pathlib import Path

import pytest

from captioning.comparison import runner
from captioning.comparison.plan import make_plan
from captioning.comparison.study import read_study
from captioning.errors import DIVERGED, UserError
from captioning.training import checkpoint
from captioning.utils.files import write_manifest
from captioning.utils.locks import folder_lock
from tests.helpers.comparison import write_study
from tests.helpers.running import tool


def silent(line):
    pass


def call(name, *arguments):
    done = tool(name, *arguments)
    return done.code, done.err


def pretend_trained(folder, **progress):
    last = folder / "checkpoints" / "last"
    for path in (last, folder / "model"):
        path.mkdir(parents=True)
    for name in checkpoint.FILES:
        (last / name).touch()
    stored = {"identity": {"settings": {}, "data": {}}, "scaler": {}}
    (last / "progress.json").write_text(
        json.dumps({"format": checkpoint.FORMAT, **stored, "done": True, "phase": 0, **progress})
    )
    for path in (last, folder / "model"):
        write_manifest(path)


def test_a_study_is_resumed_wherever_it_was_interrupted(tmp_path, monkeypatch):
    path = write_study(tmp_path, learning_rates=[0.001, 0.02], search_epochs=1, seeds=[1])
    monkeypatch.setattr("captioning.comparison.runner.MAX_WIDENINGS", 0)
    plan = make_plan(read_study(path))
    calls = []

    def interrupted_after(limit):
        def run(name, *arguments):
            if len(calls) == limit:
                raise KeyboardInterrupt
            calls.append((name, *arguments))
            return call(name, *arguments)

        return run

    with pytest.raises(KeyboardInterrupt):  # after four trials and a training
        runner.run_study(plan, log=silent, command=interrupted_after(5))
    first, second = (run.config.folder for run in plan.runs)
    assert runner.run_state(runner.with_learning_rate(plan.runs[0].config, 0.02)) == "trained"

    # as if killed while the first checkpoint was being written
    (second / "checkpoints" / ".last.part").mkdir(parents=True)
    timings = [json.loads(line) for line in (first / "timings.jsonl").read_text().splitlines()]
    assert {"speed/seconds", "speed/memory_mb"} <= {key for line in timings for key in line}
    assert json.loads((first / "checkpoints" / "last" / "progress.json").read_text())["done"]

    rates = runner.run_study(plan, log=silent, command=interrupted_after(-1))
    trained = [arguments[0] for name, *arguments in calls if name == "train"]
    assert len(trained) == len(set(trained)) == 4 + 2  # nothing twice
    evaluated = [arguments[0] for name, *arguments in calls if name == "evaluate"]
    assert evaluated == [str(run.config.folder) for run in plan.runs]
    scores = runner.learning_rate_scores(plan)
    assert rates == {name: max(values, key=values.get) for name, values in scores.items()}

    # nothing is left to do; scores of another model are computed again; runs of another study are refused
    runner.run_study(plan, log=silent, command=interrupted_after(len(calls)))
    (first / "scores_test.json").write_text('{"signature": {"model": "0"}}')
    runner.run_study(plan, log=silent, command=interrupted_after(len(calls) + 1))
    assert calls[-1][:2] == ("evaluate", str(first))
    scores = json.loads((first / "scores_test.json").read_text())
    scores["signature"]["search"] |= {"kind": "beam", "width": 8}
    (first / "scores_test.json").write_text(json.dumps(scores))
    assert not runner.is_evaluated(plan.runs[0].config, "test")
    runner.run_study(plan, log=silent, command=interrupted_after(len(calls) + 1))
    assert calls[-1][:2] == ("evaluate", str(first))
    assert runner.is_evaluated(plan.runs[0].config, "test")
    other = make_plan(read_study(path, ["training.label_smoothing=0.3"]))
    with pytest.raises(UserError, match=r"label_smoothing 0\.0, now 0\.3"):
        runner.run_study(other, log=silent, command=call)
    shutil.rmtree(second)
    assert runner.run_state(plan.runs[1].config) == "new"


def test_jobs_run_at_the_same_time(tmp_path):
    plan = make_plan(read_study(write_study(tmp_path)))
    both, calls = threading.Barrier(2, timeout=60), []

    def command(name, *arguments):
        calls.append(name)
        both.wait()  # breaks if only one is running
        if name == "train":
            pretend_trained(Path(arguments[0]).parent)
        return 0, ""

    runner.run_study(plan, log=silent, command=command, jobs=2)
    assert calls == ["train", "train", "evaluate", "evaluate"] * 2


def test_a_diverged_trial_loses_and_the_study_goes_on(tmp_path):
    plan = make_plan(read_study(write_study(tmp_path, learning_rates=[0.5, 0.01], seeds=[0])))

    def train(name, *arguments):
        if "rate0.5" in arguments[0]:
            return DIVERGED, "error: step 3: the gradient is nan"
        pretend_trained(Path(arguments[0]).parent, best=0.1 if "rate0.01" in arguments[0] else 0.05)
        return 0, ""

    assert runner.search_learning_rates(plan, train, silent) == {"lstm": 0.01, "transformer": 0.01}
    assert runner.learning_rate_scores(plan)["lstm"] == {0.0002: 0.05, 0.01: 0.1, 0.5: None}


def test_rates_are_added_beyond_the_edge_until_the_best_lies_inside(tmp_path):
    """The LSTM's best rate is far above those tried, the Transformer's is one of them."""
    path = write_study(tmp_path, learning_rates=[0.001, 0.002, 0.004], seeds=[0])
    plan, begun = make_plan(read_study(path)), []
    best = {"lstm": 0.014, "transformer": 0.002}

    def train(name, *arguments):
        folder = Path(arguments[0]).parent
        begun.append(folder.name)
        system, rate = folder.name.split("-rate")
        pretend_trained(folder, best=1 - abs(math.log(float(rate) / best[system])))
        return 0, ""

    lines = []
    assert runner.search_learning_rates(plan, train, lines.append) == {"lstm": 0.016, "transformer": 0.002}
    assert begun[6:] == ["lstm-rate0.008", "lstm-rate0.016", "lstm-rate0.032"]
    assert list(runner.learning_rate_scores(plan)["lstm"]) == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032]
    assert not any("at the edge" in line for line in lines)


def test_a_rate_that_stays_at_the_edge_is_reported(tmp_path):
    plan = make_plan(read_study(write_study(tmp_path, learning_rates=[0.01, 0.02], seeds=[0])))

    def train(name, *arguments):
        folder = Path(arguments[0]).parent
        pretend_trained(folder, best=-float(folder.name.split("-rate")[1]))
        return 0, ""

    lines = []
    rates = runner.search_learning_rates(plan, train, lines.append)
    assert rates == {"lstm": 0.000625, "transformer": 0.000625}
    assert sum("at the edge of the rates tried" in line for line in lines) == 2


@pytest.mark.parametrize("code", [1, 2])
def test_other_failures_of_a_trial_stop_the_study(tmp_path, code):
    plan = make_plan(read_study(write_study(tmp_path, learning_rates=[0.5], seeds=[0])))
    with pytest.raises(UserError, match=f"training stopped with code {code}: no disk space"):
        runner.search_learning_rates(plan, lambda *_: (code, "no disk space"), silent)


def test_a_study_in_which_every_rate_diverges_is_stopped(tmp_path):
    plan = make_plan(read_study(write_study(tmp_path, learning_rates=[0.5], seeds=[0])))
    with pytest.raises(UserError, match="lstm diverged with every rate"):
        runner.search_learning_rates(plan, lambda *_: (DIVERGED, "nan"), silent)


def test_a_study_is_run_by_one_process_at_a_time(tmp_path):
    plan = make_plan(read_study(write_study(tmp_path)))
    with (
        folder_lock(plan.study.folder, advice="-"),
        pytest.raises(UserError, match="writes here; wait until it has ended"),
    ):
        runner.run_study(plan, log=silent, command=call)
