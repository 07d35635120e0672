"""A model's search settings with some of them changed from the command line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from captioning.errors import UserError
from captioning.generation import BeamConfig, GreedyConfig, SearchConfig
from captioning.generation.base import option_names, shared_options
from captioning.generation.scores import LengthRule
from captioning.utils.parsing import parse_yaml_value
from captioning.utils.validation import dump, find_kind, validate


def override_search(
    config: SearchConfig,
    *,
    kind: str | None = None,
    options: Sequence[str] = (),
    width: int | None = None,
    n_best: int | None = None,
    max_length: int | None = None,
    length_rule: LengthRule | None = None,
    max_positions: int | None = None,
) -> SearchConfig:
    """`config` with the given options; None keeps its value.

    Another `kind` keeps lengths, length rule and constraints. Without `kind`, a width turns a search that has
    none into a beam search, and a length rule turns greedy search into a beam search of width 1. Without a
    width, a beam grows to `n_best`; with one, the config's `n_best` is lowered to it.

    Args:
        options: `key=value` for any option of the search, the values in YAML.
        n_best: captions per image; the number of samples of a random search.
        max_positions: maximum number of tokens that the decoder can read, including `<end>`; None: no limit.

    Raises:
        UserError: an option is unknown, out of range or contradicts another.
    """
    named = {"width": width, "max_length": max_length, "length_rule": length_rule}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    given.update(map(_parse, options))
    target = (
        type(config) if kind is None else find_kind(SearchConfig, kind, where="--search", allow_code=True)
    )
    if kind is None and not given.keys() <= set(option_names(target)):
        if "width" in given:
            target = BeamConfig
        elif target is GreedyConfig and "length_rule" in given:
            target, given = BeamConfig, {"width": 1, **given}
    if target is type(config):
        values = dump(config)
        if isinstance(given.get("width"), int) and "n_best" in values:
            values["n_best"] = min(values["n_best"], given["width"])
    else:
        values = shared_options(config, target)
    result = _validate(target, values, given)
    if max_positions is not None and result.max_length > max_positions:
        option = f"--max-length {max_length}" if max_length else f"search.max_length={result.max_length}"
        raise UserError(f"{option}: this model's decoder reads at most {max_positions} words")
    if n_best is None:
        return result
    if "width" in given and n_best > given["width"]:
        raise UserError(
            f"--top {n_best}: a beam of {given['width']} returns at most {given['width']} captions; give "
            f"--beam {n_best}"
        )
    if kind == "greedy" and n_best > 1:
        raise UserError(f"--top {n_best}: greedy search returns one caption; use --search beam")
    return result.with_n_best(n_best)


def _parse(option: str) -> tuple[str, Any]:
    key, sign, text = option.partition("=")
    if not sign or not key:
        raise UserError(f"--search-option {option}: write it KEY=VALUE, as in max_length=12")
    return key.removeprefix("search."), parse_yaml_value(text, where=f"--search-option {option}")


def _validate(target: type[Any], values: Mapping[str, Any], given: Mapping[str, Any]) -> SearchConfig:
    """Raises UserError for the first invalid option."""
    known = option_names(target)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its options are {', '.join(known)}"
            raise UserError(f"search.{name}: not an option of the search {target.kind}; {hint}")
    return validate(target, {**values, **given}, where="", section="search")
