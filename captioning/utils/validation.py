"""Typed settings from plain values: pydantic over frozen dataclasses, unions chosen by `kind`, one-sentence errors."""

from __future__ import annotations

import difflib
import functools
import math
import os
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError, ValidationInfo
from pydantic_core import core_schema

from captioning.errors import UserError
from captioning.utils.files import read_text
from captioning.utils.parsing import parse_yaml
from captioning.utils.paths import check_run_name
from captioning.utils.plugins import load_object

T = TypeVar("T")

RunName = Annotated[str, AfterValidator(check_run_name)]
"""Type of a setting that names a folder below that of all runs."""

Seed = Annotated[int, Field(ge=0)]
"""Type of a setting that seeds random numbers."""


class KindError(ValueError):
    """A section's `kind` is missing, unknown or cannot be imported."""


@dataclass(frozen=True)
class ByKind:
    """Makes a union of dataclasses choose its member by the key `kind`: `Annotated[A | B, ByKind()]`.

    Attributes:
        base: base class of members from outside the package, whose kind is "module:Class"; None allows none.
    """

    base: type | None = None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        members = {member.kind: member for member in typing.get_args(source)}

        def parse(value: Any, info: ValidationInfo) -> Any:
            if isinstance(value, tuple(members.values())) or (self.base and isinstance(value, self.base)):
                return value
            if not isinstance(value, Mapping):
                raise ValueError(f"expected a section with a kind, got {value!r}")
            allow_code = bool(info.context and info.context.get("allow_code"))
            member = self.member(members, value.get("kind"), allow_code=allow_code)
            return _adapter(member).validate_python(dict(value), context=info.context)

        def dump(value: Any, info: core_schema.SerializationInfo) -> Any:
            return _adapter(type(value)).dump_python(value, mode="json" if info.mode_is_json() else "python")

        return core_schema.with_info_plain_validator_function(
            parse, serialization=core_schema.plain_serializer_function_ser_schema(dump, info_arg=True)
        )

    def member(self, members: Mapping[str, type], kind: Any, *, allow_code: bool) -> type:
        """The class of a kind. Raises KindError."""
        if kind is None:
            raise KindError(f"missing; there are {', '.join(members)}")
        if isinstance(kind, str) and kind in members:
            return members[kind]
        if not (self.base and isinstance(kind, str) and ":" in kind):
            near = difflib.get_close_matches(str(kind)[:80], members, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(members)}"
            raise KindError(f"unknown kind {kind!r}; {hint}")
        try:
            return self._outside(kind, load_object(kind, allow_code=allow_code))
        except UserError as error:
            raise KindError(str(error)) from error

    def _outside(self, kind: str, member: Any) -> type:
        base = typing.cast(type, self.base)
        if not (isinstance(member, type) and issubclass(member, base) and is_dataclass(member)):
            raise UserError(f"{kind} is not a dataclass derived from {base.__module__}.{base.__qualname__}")
        if getattr(member, "kind", None) != kind:
            raise UserError(f"{kind}: the class needs the field `kind: Literal[{kind!r}] = {kind!r}`")
        return member


def members(union: Any) -> dict[str, type[Any]]:
    """The classes of an `Annotated[A | B, ByKind()]` by kind."""
    return {member.kind: member for member in typing.get_args(typing.get_args(union)[0])}


def find_kind(union: Any, kind: str, *, where: str, allow_code: bool = False) -> type[Any]:
    """The class of one kind of an `Annotated[A | B, ByKind()]`. Raises UserError, which begins with `where`."""
    by_kind = next(argument for argument in typing.get_args(union) if isinstance(argument, ByKind))
    try:
        return by_kind.member(members(union), kind, allow_code=allow_code)
    except KindError as error:
        raise UserError(f"{where}: {error}") from error.__cause__


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML file of plain values. Raises UserError if it is anything else."""
    values = parse_yaml(read_text(path), where=str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values at the root, found {type(values).__name__}")
    return values


_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)


def dump(value: Any) -> dict[str, Any]:
    """A settings dataclass as plain values, as YAML and JSON hold them."""
    return _adapter(type(value)).dump_python(value, mode="json")


def check_shape(value: T, shape: Any, *, where: str | os.PathLike[str], advice: str) -> T:
    """Return `value`, read from a JSON file, if it has the type `shape` (such as a TypedDict).

    Raises:
        UserError: names the first entry that has another type; `advice` says what to do.
    """
    try:
        _adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        entry = ".".join(str(part)[:80] for part in problem["loc"]) or "the root"
        message = f"{problem['msg'][0].lower()}{problem['msg'][1:]}"
        raise UserError(f"{where}: not in the form expected here ({entry}: {message}); {advice}") from None
    return value


def validate(
    target: type[T] | Any,
    values: Mapping[str, Any],
    *,
    where: str,
    section: str = "",
    allow_code: bool = False,
) -> T:
    """An instance of a dataclass, or of a union of them, made of plain values.

    Args:
        where: the file or option that the values come from, for the message; "" to leave it out.
        section: key of the section in that file, for the message.
        allow_code: whether a `kind` outside the package may be imported (see `load_object`).

    Raises:
        UserError: names the first key that is wrong, and the nearest known one where it is unknown.
    """
    try:
        result = _adapter(target).validate_python(dict(values), context={"allow_code": allow_code})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        cause = problem.get("ctx", {}).get("error")
        message = _explain(problem, target, values, section)
        raise UserError(f"{where}: {message}" if where else message) from getattr(cause, "__cause__", None)
    if impossible := _find_impossible(result, section):
        raise UserError(f"{where}: {impossible}" if where else impossible)
    return result


def _find_impossible(value: Any, key: str) -> str | None:
    """The first value that no setting can have: infinity, NaN, an integer of over 64 bits, text that no path can be.

    Checked here for all settings, those of classes outside the package included.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f"{key}: expected a finite number, got {value}"
    if isinstance(value, int) and abs(value) >= 2**63:
        return f"{key}: expected a number of at most 64 bits, got {value!r}"
    if isinstance(value, str):
        try:
            usable = b"\0" not in os.fsencode(value)
        except UnicodeEncodeError:
            usable = False
        return None if usable else f"{key}: expected text without NUL and lone surrogates, got {value!r}"
    entries: Iterable[tuple[Any, Any]] = ()
    if is_dataclass(value):
        entries = ((field.name, getattr(value, field.name)) for field in fields(value))
    elif isinstance(value, Mapping):
        entries = value.items()
    elif isinstance(value, list | tuple):
        entries = enumerate(value)
    found = (_find_impossible(child, f"{key}.{name}" if key else str(name)) for name, child in entries)
    return next(filter(None, found), None)


def _explain(problem: Mapping[str, Any], target: Any, values: Any, section: str) -> str:
    """One sentence for one problem that pydantic has found."""
    place, error = problem["loc"], problem.get("ctx", {}).get("error")
    parents = [section] if section else []
    parents += [str(part) for part in place[:-1]]
    for part in place[:-1]:
        target, values = _child(target, values, part)
    key = ".".join([*parents, *map(str, place[-1:]), *(["kind"] if isinstance(error, KindError) else [])])
    key = key or "settings"
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        config = _dataclass(target, values)
        names = [field.name for field in fields(config)] if config else []
        near = difflib.get_close_matches(str(place[-1]), names, n=1)
        hint = f"did you mean {'.'.join([*parents, near[0]])}?" if near else f"there are {', '.join(names)}"
        return f"{key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    if problem["type"] == "value_error":
        return f"{key}: {error}"  # which names the values
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}"


def _child(target: Any, values: Any, part: Any) -> tuple[Any, Any]:
    """The type and the values of one key of a section, or of one entry of a list."""
    if typing.get_origin(target) is dict:
        return typing.get_args(target)[1], values.get(part) if isinstance(values, Mapping) else None
    if isinstance(part, int):
        return target, values[part] if isinstance(values, list | tuple) and part < len(values) else None
    config = _dataclass(target, values)
    hint = typing.get_type_hints(config).get(part) if config else None
    return hint, values.get(part) if isinstance(values, Mapping) else None


def _dataclass(target: Any, values: Any) -> Any:
    """The dataclass, among those of a type, that values belong to by their kind; None where there is none."""
    options = list(_dataclasses(target))
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if isinstance(kind, str) and ":" in kind:
        return load_object(kind, allow_code=False)  # validation has imported it
    chosen = [option for option in options if getattr(option, "kind", None) == kind]
    return next(iter(chosen or options), None)


def _dataclasses(target: Any) -> typing.Iterator[Any]:
    if is_dataclass(target):
        yield target
    else:
        for argument in typing.get_args(target):
            yield from _dataclasses(argument)


def differing_settings(
    settings: Sequence[Mapping[str, Any]], *, ignore: Sequence[str] = ()
) -> list[tuple[str, list[Any]]]:
    """Keys (`section.key`) with different values, and the value in each of `settings`; None for a missing one.

    Args:
        ignore: top-level keys to leave out.
    """
    flat = [_flatten(values) for values in settings]
    rows = [(key, [values.get(key) for values in flat]) for key in sorted(set().union(*flat))]
    return [
        (key, values)
        for key, values in rows
        if key.split(".")[0] not in ignore and any(value != values[0] for value in values)
    ]


def _flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
