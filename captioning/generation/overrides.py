"""A model's search settings with some of them changed from a command line. Knows no models."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from captioning.errors import UserError
from captioning.generation import BeamConfig, GreedyConfig, SearchConfig
from captioning.generation.processors import names, settings
from captioning.generation.scores import LengthRule

KINDS: dict[str, type[Any]] = {each.kind: each for each in typing.get_args(typing.get_args(SearchConfig)[0])}


def adjusted(
    config: SearchConfig,
    *,
    kind: str | None = None,
    options: Sequence[str] = (),
    width: int | None = None,
    n_best: int | None = None,
    max_length: int | None = None,
    length_rule: LengthRule | None = None,
    longest: int | None = None,
) -> SearchConfig:
    """`config` with what is given; None keeps its own value.

    Another `kind` keeps lengths, length rule and rules. Without `kind` a search that knows no width becomes a
    beam search where one is given, and a greedy one also where captions are to be compared. Without a width
    a beam grows to `n_best`; with it, `n_best` of the config is lowered to it.

    Args:
        options: `key=value`, any settings of the search, the values YAML.
        n_best: captions an image; a sampling search draws that many.
        longest: most words (`<end>` counted) that the decoder can read; None: any number.

    Raises:
        UserError: what is asked for is not to be had, or contradicts the rest.
    """
    named = {"width": width, "max_length": max_length, "length_rule": length_rule}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    given.update(map(_parsed, options))
    wanted = type(config) if kind is None else KINDS[kind]
    if kind is None and not given.keys() <= set(names(wanted)):
        if "width" in given:
            wanted = BeamConfig
        elif wanted is GreedyConfig and "length_rule" in given:
            wanted, given = BeamConfig, {"width": 1, **given}
    if wanted is type(config):
        values = TypeAdapter(wanted).dump_python(config)
        if isinstance(given.get("width"), int) and "n_best" in values:
            values["n_best"] = min(values["n_best"], given["width"])
    else:
        values = settings(config, wanted)
    found = _checked(wanted, values, given)
    if longest is not None and found.max_length > longest:
        asked = f"--max-length {max_length}" if max_length else f"search.max_length={found.max_length}"
        raise UserError(f"{asked}: this model's decoder reads no more than {longest} words")
    if n_best is None:
        return found
    if "width" in given and n_best > given["width"]:
        most = given["width"]
        raise UserError(f"--top {n_best}: a beam of {most} finds no more than {most}; give --beam {n_best}")
    if kind == "greedy" and n_best > 1:
        raise UserError(f"--top {n_best}: a greedy search finds one caption; use --search beam")
    return found.finding(n_best)


def _parsed(option: str) -> tuple[str, Any]:
    key, sign, text = option.partition("=")
    if not sign or not key:
        raise UserError(f"--search-option {option}: write it KEY=VALUE, as in max_length=12")
    try:
        return key.removeprefix("search."), yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--search-option {option}: the value is not YAML") from None


def _checked(wanted: type[Any], values: Mapping[str, Any], given: Mapping[str, Any]) -> SearchConfig:
    """Raises UserError naming the first setting that is wrong."""
    known = names(wanted)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UserError(f"search.{name}: not a setting of the search {wanted.kind}; {hint}")
    try:
        return TypeAdapter(wanted).validate_python({**values, **given})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(["search", *(str(part) for part in problem["loc"])])
        message = problem["msg"].removeprefix("Value error, ")
        got = f", got {problem['input']!r}" if problem["loc"] else ""
        raise UserError(f"{place}: {message[0].lower()}{message[1:]}{got}") from None
