"""Study files: merged settings and refused values."""

import pytest

from captioning.comparison.plan import make_plan
from captioning.comparison.study import merge, read_study
from captioning.errors import UserError
from captioning.utils.paths import shipped_configs
from tests.helpers.comparison import LSTM, write_study


def test_merging_changes_sections_and_replaces_those_of_another_kind():
    base = {"a": {"x": 1, "y": 2}, "search": {"kind": "beam", "width": 5}, "b": 3}
    changes = {"a": {"y": 7}, "search": {"kind": "greedy"}, "c": {"d": 4}}
    assert merge(base, changes) == {
        "a": {"x": 1, "y": 7},
        "search": {"kind": "greedy"},
        "b": 3,
        "c": {"d": 4},
    }
    assert merge(base, {"search": {"width": 3}})["search"] == {"kind": "beam", "width": 3}


@pytest.mark.parametrize("file", sorted(shipped_configs().glob("study_*.yaml")), ids=lambda file: file.stem)
def test_shipped_studies_are_found_by_name_from_any_folder(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = read_study(file.stem, ["training.epochs=7"])
    assert (
        study
        == read_study(file, ["training.epochs=7"])
        == read_study(f"configs/{file.name}", ["training.epochs=7"])
    )
    assert study.overrides["training"]["epochs"] == 7


def test_other_settings_may_differ_between_systems(tmp_path):
    overrides = {"training": {"label_smoothing": 0.1}}
    decoders = {"a": {"decoder": LSTM}, "b": {"decoder": {**LSTM, "dropout": 0.3}, "overrides": overrides}}
    plan = make_plan(read_study(write_study(tmp_path, match=None, decoders=decoders)))
    assert [run.config.training.label_smoothing for run in plan.runs] == [0, 0.1, 0, 0.1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "did you mean seeds?"),
        ({"decoders": {"a": {"decoder": LSTM, "overides": {}}}}, "did you mean decoders.a.overrides?"),
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
        (
            {
                "match": None,
                "decoders": {
                    "a": {"decoder": LSTM},
                    "b": {"decoder": LSTM, "overrides": {"training": {"batch_size": 3}}},
                },
            },
            "another training.batch_size than the rest; use the same batches",
        ),
        *(
            (
                {
                    "match": None,
                    "decoders": {"a": {"decoder": LSTM}, "b": {"decoder": LSTM, "overrides": overrides}},
                },
                message,
            )
            for overrides, message in (
                (
                    {"training": {"epochs": 3}},
                    "b has another training.epochs than the rest; use the same budget",
                ),
                ({"training": {"validate_every": 2}}, "another training.validate_every"),
                ({"training": {"patience": 7}}, "another training.patience"),
                ({"training": {"metric": "BLEU-4"}}, "another training.metric"),
                ({"phases": [{"epochs": 1}]}, "another phases than the rest"),
            )
        ),
    ],
)
def test_wrong_values_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        make_plan(read_study(write_study(tmp_path, **changes)))
