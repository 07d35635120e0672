"""Strict YAML and JSON: duplicate keys, alias bombs, deep nesting and impossible numbers are refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable
from typing import Any

import yaml

from captioning.errors import UserError

MAX_DEPTH = 100
MAX_NODES = 100_000
"""Nodes of a YAML file after its aliases are expanded: a config has hundreds, an alias bomb of 1 kB has billions."""


class _StrictLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` that bounds nesting and alias expansion and refuses duplicate keys."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self._depth = 0
        self._nodes = 0
        self._sizes: dict[int, int] = {}  # nodes below a composed node, aliases expanded
        self._open: set[int] = set()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            return self._compose_alias(parent, index, event)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"nested more than {MAX_DEPTH} deep", event.start_mark
            )
        before = self._nodes
        self._count(1, event.start_mark)
        node = super().compose_node(parent, index)
        if node is not None:
            self._sizes[id(node)] = self._nodes - before
        self._depth -= 1
        return node

    def _compose_alias(self, parent: yaml.Node | None, index: int, event: Any) -> yaml.Node | None:
        node = super().compose_node(parent, index)
        if id(node) not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "an alias inside its own anchor", event.start_mark)
        self._count(self._sizes[id(node)], event.start_mark)
        return node

    def _count(self, nodes: int, mark: Any) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise yaml.composer.ComposerError(
                None, None, f"more than {MAX_NODES:,} values once its aliases are expanded", mark
            )

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:  # an impossible date, an integer of over 4,300 digits
            message = str(error).split(";")[0]
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"duplicate key {key!r}", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, *, where: str) -> Any:
    """The value of a YAML document of plain values.

    Args:
        where: the file's name, or the command line option, for the message.

    Raises:
        UserError: broken YAML, a tag such as `!!python/object`, a duplicate key, an alias bomb, nesting over
            `MAX_DEPTH`, an integer of over 4,300 digits, an impossible date; with line and column.
    """
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{where}: broken YAML{place}: {problem}") from None
    except RecursionError:
        raise UserError(f"{where}: broken YAML: nested more than {MAX_DEPTH} deep") from None


def parse_yaml_value(text: str, *, where: str) -> Any:
    """The value of a setting on the command line, such as the right side of `training.epochs=10`.

    Raises:
        UserError: as `parse_yaml`, in the words of a user who wrote no YAML file.
    """
    try:
        return parse_yaml(text, where="")
    except UserError as error:
        raise UserError(
            f"{where}: the value is not YAML ({str(error).split(': ', 2)[-1]}); quote it"
        ) from None


def parse_json(text: str, *, where: str, line: int | None = None, surrogates: bool = False) -> Any:
    """The value of a JSON document.

    Args:
        where: the file's name for the message.
        line: the document's line in its file (JSON Lines).
        surrogates: accept text with half of a surrogate pair, which cannot be written as UTF-8.

    Raises:
        UserError: broken JSON, a duplicate key, NaN, infinity or 1e400, an integer of over 4,300 digits, nesting too
            deep to be read, or text that is not valid Unicode (a lone surrogate).
    """
    place = f" at line {line}" if line else ""
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
        )
    except json.JSONDecodeError as error:
        at = f"line {line or error.lineno}, column {error.colno}"
        raise UserError(f"{where}: broken JSON at {at}: {error.msg}") from None
    except _Refused as error:
        raise UserError(f"{where}: broken JSON{place}: {error}") from None
    except RecursionError:
        raise UserError(f"{where}: broken JSON{place}: nested too deeply to be read") from None
    except ValueError:  # Python's limit on integers
        raise UserError(f"{where}: broken JSON{place}: an integer of over 4,300 digits") from None
    if not surrogates and _SURROGATE.search(text) and not _encodable(value):
        raise UserError(f"{where}: broken JSON{place}: text with half of a Unicode surrogate pair")
    return value


class _Refused(Exception):
    """Valid for Python's json, but not accepted here."""


_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise _Refused(f"duplicate key {duplicate[:80]!r}")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise _Refused(f"{text[:40]} is too large for a number")
    return number


def _refuse_constant(name: str) -> Any:
    raise _Refused(f"{name} is not a JSON number")


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
