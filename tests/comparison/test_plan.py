"""Plans of studies: runs, trials and matched sizes."""

import pytest

from captioning.comparison.plan import describe_plan, make_plan, next_rate
from captioning.comparison.runner import run_states
from captioning.comparison.study import read_study
from tests.helpers.comparison import write_study


def test_all_runs_share_data_batches_and_search(tmp_path):
    plan = make_plan(read_study(write_study(tmp_path, learning_rates=[0.001, 0.01])))
    assert [run.config.name for run in plan.runs] == [
        "lstm-seed0",
        "transformer-seed0",
        "lstm-seed1",
        "transformer-seed1",
    ]
    assert [run.config.seed for run in plan.runs] == [0, 0, 1, 1]
    for section in ("dataset", "encoder", "vocabulary", "search", "training"):
        assert len({str(getattr(run.config, section)) for run in plan.runs}) == 1
    assert [(run.system, run.config.training.learning_rate) for run in plan.trials] == [
        ("lstm", 0.001),
        ("lstm", 0.01),
        ("transformer", 0.001),
        ("transformer", 0.01),
    ]
    assert {run.config.training.epochs for run in plan.trials} == {plan.study.search_epochs}
    sizes = [size.parameters for size in plan.sizes.values()]
    assert abs(sizes[1] / sizes[0] - 1) < 0.05
    text = "\n".join(describe_plan(plan, run_states(plan)))
    assert all(f"{size:,}" in text for size in sizes)
    assert "4 runs, 0 trained already:" in text


@pytest.mark.parametrize(
    ("scores", "rate"),
    [
        ({0.001: 0.1, 0.002: 0.3, 0.004: 0.2}, None),
        ({0.001: 0.1, 0.002: 0.2, 0.004: 0.3}, 0.008),
        ({0.001: 0.3, 0.002: 0.2, 0.004: 0.1}, 0.0005),
        ({0.001: 0.3, 0.003: 0.2}, 0.000333),
        ({0.001: 0.1, 0.002: 0.2, 0.004: None}, None),  # higher ones diverge
        ({0.001: None, 0.002: None}, None),
        ({0.001: 0.1}, None),
        ({}, None),
    ],
)
def test_the_rate_beyond_the_edge(scores, rate):
    assert next_rate(scores, higher_is_better=True) == rate
    lower = {tried: None if score is None else -score for tried, score in scores.items()}
    assert next_rate(lower, higher_is_better=False) == rate


def test_every_length_has_its_own_runs(tmp_path):
    study = read_study(
        write_study(tmp_path, lengths=[7, 11], length_epochs={7: 5}, learning_rates=[0.01], seeds=[3])
    )
    plan = make_plan(study)
    assert {(run.system, run.caption_length) for run in plan.runs} == {
        (system, words) for system in ("lstm", "transformer") for words in (7, 11)
    }
    assert all(run.config.dataset.words == run.caption_length for run in plan.runs)
    assert {run.caption_length for run in plan.trials} == {11}
    assert {(run.caption_length, run.config.training.epochs) for run in plan.runs} == {(7, 5), (11, 2)}
