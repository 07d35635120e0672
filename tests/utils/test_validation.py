"""Settings by `kind`, also outside the package: what is accepted, what is refused and with which sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from captioning.config import parse, read_config
from captioning.errors import UserError
from captioning.models.decoders import DecoderConfig
from captioning.utils.validation import differing_settings, dump, members

MODULE = """
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from captioning.models.decoders import ShowTellConfig

Path("imported").touch()


@dataclass(frozen=True, kw_only=True)
class Mine(ShowTellConfig):
    kind: Literal["{name}:Mine"] = "{name}:Mine"


@dataclass(frozen=True, kw_only=True)
class Unnamed(ShowTellConfig):
    pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with decoder configs in the working folder, not imported yet."""
    name = f"kinds_of_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE.replace("{name}", name))
    (tmp_path / f"{name}_broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / f"{name}_raising.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def settings(**decoder: object) -> dict[str, object]:
    return {"name": "x", "encoder": {"kind": "small"}, "decoder": decoder}


def test_a_kind_outside_the_package_survives_a_round_trip(module: str) -> None:
    config = parse(settings(kind=f"{module}:Mine", hidden=7), where="f", allow_code=True)
    assert type(config.decoder).__name__ == "Mine" and config.decoder.hidden == 7  # type: ignore[union-attr]
    assert parse(config.as_json(), where="f") == config  # the module is imported already
    assert dump(config)["decoder"]["kind"] == f"{module}:Mine"


def test_nothing_is_imported_without_consent(module: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"f: decoder\.kind: .*is code outside .*--allow-code"):
        parse(settings(kind=f"{module}:Mine"), where="f")
    with pytest.raises(UserError, match="--allow-code"):
        (tmp_path / "x.yaml").write_text(
            f"name: x\nencoder: {{kind: small}}\ndecoder: {{kind: '{module}:Mine'}}\n"
        )
        read_config(tmp_path / "x.yaml")
    assert not (tmp_path / "imported").exists() and module not in sys.modules


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ({"kind": "MODULE:Nine"}, r"decoder\.kind: MODULE has no Nine; it defines Mine, Unnamed"),
        ({"kind": "MODULE:Unnamed"}, r"needs the field `kind: Literal\['MODULE:Unnamed'\]"),
        ({"kind": "MODULE:Mine", "hiden": 3}, r"decoder\.hiden: unknown key; did you mean decoder\.hidden\?"),
        ({"kind": "MODULE:Mine", "hidden": 0}, r"decoder\.hidden: .*greater than or equal to 1, got 0"),
        ({"kind": "MODULE_missing:X"}, r"decoder\.kind: no module MODULE_missing in .*PYTHONPATH"),
        ({"kind": "MODULE_broken:X"}, "it needs the module nothing_of_this_name; install it"),
        ({"kind": "MODULE_raising:X"}, "cannot be imported .ZeroDivisionError"),
        ({"kind": "os:system"}, "os:system is not a dataclass derived from .*BaseDecoderConfig"),
        ({"kind": "subprocess:Popen", "args": ["true"]}, "is not a dataclass derived from"),
        ({"kind": "../x:Y"}, "is not of the form my_module:MyClass"),
        ({"kind": "transfomer"}, r"decoder\.kind: unknown kind 'transfomer'; did you mean transformer\?"),
        ({"hidden": 3}, r"decoder\.kind: missing; there are show_tell, .*meshed_memory"),
    ],
)
def test_wrong_kinds_are_one_sentence(module: str, decoder: dict[str, object], message: str) -> None:
    values = {
        key: value.replace("MODULE", module) if isinstance(value, str) else value
        for key, value in decoder.items()
    }
    with pytest.raises(UserError, match=message.replace("MODULE", module)) as caught:
        parse(settings(**values), where="f", allow_code=True)
    assert str(caught.value).startswith("f: ") and "\n" not in str(caught.value)


def test_members_are_the_union() -> None:
    kinds = members(DecoderConfig)
    assert {kind: config.kind for kind, config in kinds.items()} == {kind: kind for kind in kinds}
    assert "transformer" in kinds


def test_shipped_configs_are_found_by_name() -> None:
    assert read_config("shapes").name == "shapes"
    with pytest.raises(
        UserError, match=r"flickr8k_lstn: neither a file nor a config .*did you mean flickr8k_lstm"
    ):
        read_config("flickr8k_lstn")


def test_differing_settings_are_found_in_sections():
    a = {"name": "a", "training": {"epochs": 3, "schedule": {"warmup": 5}}, "seed": 1}
    b = {"name": "b", "training": {"epochs": 3, "schedule": {"warmup": 7}, "ema": 0.9}, "seed": 1}
    a["phases"], b["phases"] = [{"epochs": 2}], [{"epochs": 5}, {"epochs": 1}]
    assert differing_settings([a, b], ignore=("name",)) == [
        ("phases.0.epochs", [2, 5]),
        ("phases.1.epochs", [None, 1]),
        ("training.ema", [None, 0.9]),
        ("training.schedule.warmup", [5, 7]),
    ]
