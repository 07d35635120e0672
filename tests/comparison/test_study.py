"""Studies: what a YAML file means, equal sizes, and a tiny one run, killed on the way and gone on with."""

import functools
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
import yaml

from captioning.comparison import study as studies
from captioning.comparison.study import merged
from captioning.errors import UserError
from tests.helpers.running import tool

ROOT = Path(__file__).resolve().parents[2]
LSTM = {"kind": "soft_attention_lstm", "embedding": 13, "hidden": 32, "attention_size": 17, "dropout": 0.0}
TRANSFORMER = {
    "kind": "transformer",
    "hidden": 40,
    "feed_forward": 60,
    "heads": 2,
    "layers": 2,
    "max_length": 32,
}
TINY = {
    "dataset": {"train": 23, "val": 5, "test": 7, "unseen": 1},
    "encoder": {"channels": [5, 7], "frequencies": 2},
    "preprocessing": {"size": 20},
    "search": {"kind": "greedy", "max_length": 9},
    "training": {"epochs": 2, "validate_every": 1, "batch_size": 5, "schedule": {"warmup": 1}, "workers": 0},
    "tracking": {"mode": "disabled"},
}


def write_study(folder, **changes):
    values = {
        "name": "tiny",
        "base": str(ROOT / "configs" / "shapes.yaml"),
        "runs": str(folder / "runs"),
        "decoders": {"lstm": {"decoder": LSTM}, "transformer": {"decoder": TRANSFORMER}},
        "seeds": [0, 1],
        "match": {"target": "lstm", "tolerance": 0.05},
        "overrides": merged(TINY, {"dataset": {"root": str(folder / "data")}}),
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def call(name, *arguments):
    done = tool(name, *arguments)
    return done.code, done.err


def test_merging_goes_into_sections_and_replaces_another_kind():
    base = {"a": {"x": 1, "y": 2}, "search": {"kind": "beam", "width": 5}, "b": 3}
    changes = {"a": {"y": 7}, "search": {"kind": "greedy"}, "c": {"d": 4}}
    assert merged(base, changes) == {
        "a": {"x": 1, "y": 7},
        "search": {"kind": "greedy"},
        "b": 3,
        "c": {"d": 4},
    }
    assert merged(base, {"search": {"width": 3}})["search"] == {"kind": "beam", "width": 3}


def test_the_plan_has_every_run_with_the_same_data_batches_and_search(tmp_path):
    plan = studies.plan(studies.read_study(write_study(tmp_path, learning_rates=[0.001, 0.01])))
    assert [run.config.name for run in plan.runs] == [
        "lstm-seed0",
        "transformer-seed0",
        "lstm-seed1",
        "transformer-seed1",
    ]
    assert [run.config.seed for run in plan.runs] == [0, 0, 1, 1]
    for part in ("dataset", "encoder", "vocabulary", "search", "training"):
        assert len({str(getattr(run.config, part)) for run in plan.runs}) == 1
    assert len(plan.trials) == 4
    assert {run.config.training.epochs for _, _, run in plan.trials} == {plan.study.search_epochs}
    sizes = [size.parameters for size in plan.sizes.values()]
    assert abs(sizes[1] / sizes[0] - 1) < 0.05
    shown = "\n".join(studies.generate_captions(plan))
    assert all(f"{size:,}" in shown for size in sizes)


def test_lengths_multiply_the_runs(tmp_path):
    study = studies.read_study(
        write_study(tmp_path, lengths=[7, 11], length_epochs={7: 5}, learning_rates=[0.01], seeds=[3])
    )
    plan = studies.plan(study)
    assert {(run.system, run.words) for run in plan.runs} == {
        (system, words) for system in ("lstm", "transformer") for words in (7, 11)
    }
    assert all(run.config.dataset.words == run.words for run in plan.runs)
    assert {run.words for _, _, run in plan.trials} == {11}
    assert {(run.words, run.config.training.epochs) for run in plan.runs} == {(7, 5), (11, 2)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sedes": [1]}, "did you mean seeds?"),
        ({"match": {"target": "gru"}}, "none of its decoders"),
        ({"match": {"target": 20}}, "choose another size"),
        ({"seeds": [1, 1]}, "each seed once"),
        ({"decoders": {"a/b": {"decoder": LSTM}}}, "folder's name"),
        ({"match": None, "decoders": {"a": {"decoder": {**LSTM, "hiden": 3}}}}, "hiden"),
        (
            {
                "match": None,
                "decoders": {
                    "a": {"decoder": LSTM},
                    "b": {"decoder": LSTM, "overrides": {"search": {"max_length": 5}}},
                },
            },
            "another search",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        studies.plan(studies.read_study(write_study(tmp_path, **changes)))


def test_a_study_is_gone_on_with_wherever_it_was_killed(tmp_path):
    path = write_study(tmp_path, learning_rates=[0.001, 0.02], search_epochs=1, seeds=[1])
    plan = studies.plan(studies.read_study(path))
    done = []

    def killed(limit):
        def run(name, *arguments):
            if len(done) == limit:
                raise KeyboardInterrupt
            done.append((name, *arguments))
            return call(name, *arguments)

        return run

    with pytest.raises(KeyboardInterrupt):
        studies.execute(plan, log=lambda line: None, tool=killed(5))  # four trials and a training
    first = plan.runs[0].config.folder
    assert studies.state(studies.with_rate(plan.runs[0].config, 0.02)) == "trained"

    # as if killed in a checkpoint's first writing, and after an epoch of two
    second = plan.runs[1].config.folder
    (second / "checkpoints" / ".last.part").mkdir(parents=True)
    progress = first / "checkpoints" / "last" / "progress.json"
    before = first / "timings.jsonl"
    assert {"speed/seconds", "speed/memory_mb"} <= {
        key for line in before.read_text().splitlines() for key in json.loads(line)
    }
    assert json.loads(progress.read_text())["done"]

    rates = studies.execute(plan, log=lambda line: None, tool=killed(-1))
    trained = [call[1] for call in done if call[0] == "train"]
    assert len(trained) == len(set(trained)) == 4 + 2  # nothing twice
    scored = [call[1] for call in done if call[0] == "evaluate"]
    assert scored == [str(run.config.folder) for run in plan.runs]
    found = studies.tried_rates(plan)
    assert rates == {name: max(values, key=values.get) for name, values in found.items()}

    # nothing left to do; scores of another model are made again; another study's runs are refused
    studies.execute(plan, log=lambda line: None, tool=killed(len(done)))
    (first / "scores_test.json").write_text('{"signature": {"model": "0"}}')
    studies.execute(plan, log=lambda line: None, tool=killed(len(done) + 1))
    assert done[-1][:2] == ("evaluate", str(first))
    other = studies.plan(studies.read_study(path, ["training.label_smoothing=0.3"]))
    with pytest.raises(UserError, match=r"label_smoothing 0\.0, now 0\.3"):
        studies.execute(other, log=lambda line: None, tool=call)
    shutil.rmtree(second)
    assert studies.state(plan.runs[1].config) == "new"


def test_one_process_at_a_time_works_on_a_study(tmp_path):
    with (
        studies.locked(tmp_path, patience=0),
        pytest.raises(UserError, match="another process"),
        studies.locked(tmp_path, patience=0),
    ):
        pass


def test_jobs_are_at_work_together_with_their_share_of_the_cores(tmp_path):
    plan = studies.plan(studies.read_study(write_study(tmp_path)))
    together, called = threading.Barrier(2, timeout=60), []

    def both(name, *arguments):
        called.append(name)
        together.wait()  # breaks where only one is at work
        if name == "train":
            for part in ("checkpoints/last", "model"):
                folder = Path(arguments[0]).parent / part
                folder.mkdir(parents=True)
                (folder / "manifest.json").write_text("{}")
            (folder.parent / "checkpoints/last/progress.json").write_text('{"done": true, "phase": 0}')
        return 0, ""

    studies.execute(plan, log=lambda line: None, tool=both, jobs=2)
    assert called == ["train", "train", "evaluate", "evaluate"] * 2
    cores = torch.get_num_threads()
    assert studies.threads_each(1) == cores and studies.threads_each(2 * cores) == 1


def test_the_first_error_of_jobs_is_raised_and_nothing_more_begins():
    begun = []
    failing = threading.Event()

    def fail():
        failing.set()
        raise UserError("this one")

    def other(number):
        begun.append(number)
        failing.wait(60)

    with pytest.raises(UserError, match="this one"):
        studies._at_once(
            2, [functools.partial(other, 0), fail, *[functools.partial(other, n) for n in range(1, 9)]], ""
        )
    assert begun[0] == 0 and len(begun) <= 2


def test_a_rate_that_diverges_loses_and_the_study_goes_on(tmp_path):
    plan = studies.plan(studies.read_study(write_study(tmp_path, learning_rates=[0.5, 0.01], seeds=[0])))

    def train(name, *arguments):
        if "rate0.5" in arguments[0]:
            return 2, "error: step 3: the gradient is nan; lower training.learning_rate"
        folder = Path(arguments[0]).parent
        for part in ("checkpoints/last", "model"):
            (folder / part).mkdir(parents=True)
            (folder / part / "manifest.json").write_text("{}")
        (folder / "checkpoints/last/progress.json").write_text('{"done": true, "best": 0.1, "phase": 0}')
        return 0, ""

    assert studies._try_rates(plan, train, lambda line: None) == {"lstm": 0.01, "transformer": 0.01}
