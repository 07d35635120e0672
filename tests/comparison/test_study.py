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
            "another training.batch_size",
        ),
    ],
)
def test_wrong_values_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        make_plan(read_study(write_study(tmp_path, **changes)))
