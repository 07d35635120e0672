"""Mutated files as hypothesis strategies: edited bytes, and JSON whose entries were replaced, removed or repeated."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

JUNK = (
    b"\0",
    b"\xff\xfe",
    b'"',
    b"{",
    b"[" * 200,
    b"9" * 5000,
    b"\n",
    b"\r",
    b"\t",
    b",",
    b"&a *a",
    b"1e999",
    b"\xed\xa0\x80",
)

VALUES = (
    "null", "true", "-1", "0", "1", "0.5", "2147483648", "9223372036854775808", "10000000000000000000000", "1.0e+22",
    "1e400", "NaN", "Infinity", ".inf", "9" * 5000, '"inf"', '"1e22"', '""', '".."', '"/"', '"../../x"', '"\\u0000"',
    '"\\ud800"', '"a\\nb"', '"' + "a" * 300 + '"', '"<end>"', '"os:system"', '"no_module:X"', '"2001-13-45"',
    "2001-13-45", "[]", "[[]]", "[null]", '["a", 1]', "{}", '{"": null}', '{"kind": "greedy"}', '{"kind": []}',
    "[" * 99 + "]" * 99, "&a [*a]", "!!python/name:os.system", "@", "{",
)  # fmt: skip
"""JSON and YAML texts in place of a value."""


@st.composite
def mutated_bytes(draw: st.DrawFn, original: bytes) -> bytes:
    """`original` with one to three edits: bytes changed, cut, inserted or repeated, the end lost or zeroed."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 3))):
        start, length = draw(st.integers(0, len(data))), draw(st.integers(1, 40))
        edit = draw(st.sampled_from(("change", "cut", "end", "insert", "junk", "repeat", "zeros")))
        if edit == "change":
            data[start : start + length] = draw(st.binary(min_size=length, max_size=length))
        elif edit == "cut":
            del data[start : start + length]
        elif edit == "end":
            del data[start:]
        elif edit == "insert":
            data[start:start] = draw(st.binary(max_size=40))
        elif edit == "junk":
            data[start:start] = draw(st.sampled_from(JUNK))
        elif edit == "repeat":
            data[start:start] = data[start : start + length]
        else:
            data[start:] = bytes(len(data) - start)
    return bytes(data)


@st.composite
def mutated_json(draw: st.DrawFn, original: Any, *, lines: bool = False) -> bytes:
    """The JSON (with `lines` JSON Lines) of a tree in which one or two entries were changed, removed or repeated."""
    root, texts = {"": copy.deepcopy(original)}, dict[str, str]()
    for number in range(draw(st.integers(1, 2))):
        parent, key = draw(st.sampled_from(list(_entries(root))))
        edit = (
            "replace"
            if parent is root
            else draw(st.sampled_from(("replace", "replace", "remove", "repeat", "rename")))
        )
        mark = f'"MARK{number}"'
        if edit == "replace":
            parent[key], texts[mark] = mark[1:-1], draw(st.sampled_from(VALUES))
        elif edit == "remove":
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif edit == "repeat":  # a duplicate key
            parent[mark[1:-1]], texts[mark] = copy.deepcopy(parent[key]), json.dumps(key)
        else:
            parent[f"{key}s"] = parent.pop(key)
    values = root[""] if lines and isinstance(root[""], list) else [root[""]]
    text = "\n".join(map(json.dumps, values))
    for mark, replacement in texts.items():
        text = text.replace(mark, replacement)
    return text.encode()


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(items):
        yield value, key
        yield from _entries(child)
