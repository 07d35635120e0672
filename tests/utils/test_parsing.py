"""Strict YAML and JSON, beside PyYAML's and the standard library's own results for what is accepted."""

import json
import time
import tracemalloc

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from captioning.errors import UserError
from captioning.utils.parsing import parse_json, parse_yaml

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=7),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=11,
)


@given(VALUES)
def test_what_json_writes_is_read(value):
    assert parse_json(json.dumps(value), where="f") == value


@given(VALUES)
def test_what_yaml_writes_is_read(value):
    text = yaml.safe_dump(value)
    assert parse_yaml(text, where="f") == yaml.safe_load(text)


def test_aliases_and_merge_keys_are_read_as_by_pyyaml():
    text = "base: &b {a: 1, c: [x, y]}\nother: {<<: *b, a: 2}\nthird: *b\n"
    assert parse_yaml(text, where="f") == yaml.safe_load(text)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "duplicate key 'a'"),
        ("a: {b: 1, b: 1}", "line 1, column 11: duplicate key 'b'"),
        (BOMB, "aliases are expanded"),
        ("a: &a [*a]", "inside its own anchor"),
        ("[" * 500, "nested more than 100 deep"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: 2026-13-45", "month must be in 1..12"),
        ("a: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
        ("a: [1", "line 1"),
    ],
)
def test_yaml_that_is_refused(text, said):
    with pytest.raises(UserError, match=r"f\.yaml: broken YAML") as caught:
        parse_yaml(text, where="f.yaml")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_alias_bomb_costs_neither_time_nor_memory():
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(UserError):
        parse_yaml(BOMB, where="f")
    assert time.perf_counter() - began < 2 and tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ('[{"b": {"c": 1, "c": 1}}]', "duplicate key 'c'"),
        ("[NaN]", "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("9" * 5000, "over 4,300 digits"),
        ("[-1e400]", "-1e400 is too large for a number"),
        ("[" * 200_000, "nested too deeply"),
        ('["\\ud800"]', "surrogate"),
        ('{"\\uDC00 x": 1}', "surrogate"),
        ('{"a": 1', "line 1, column"),
    ],
)
def test_json_that_is_refused(text, said):
    with pytest.raises(UserError, match=r"f\.json: broken JSON") as caught:
        parse_json(text, where="f.json")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_half_a_surrogate_pair_is_read_where_it_is_checked_later():
    assert parse_json('["\\ud800"]', where="f", surrogates=True) == ["\ud800"]


def test_a_whole_surrogate_pair_is_text():
    assert parse_json('["\\ud83d\\ude00"]', where="f") == ["\U0001f600"]


def test_the_line_of_json_lines_is_named():
    with pytest.raises(UserError, match="broken JSON at line 7"):
        parse_json('{"a": 1, "a": 2}', where="f", line=7)
