"""In what the compared systems differ besides their decoder, as sentences for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from captioning.comparison.systems import RUN_SPECIFIC
from captioning.utils.validation import differing_settings

UNKNOWN = "unknown"
CONDITIONS = {
    "parameters": "parameters of the decoder",
    "updates": "updates",
    "epochs": "finished epochs",
    "learning_rate": "learning rate",
    "encoder": "encoder",
    "dataset": "data",
}

SENTENCES = {
    "differ": "The systems differ in more than the kind of decoder, and a difference in scores may come from each of "
    "these: {listed}.",
    "same": "The same for all systems: {listed}. With others the result may differ.",
    "unknown": "Unknown, so that a difference in scores may come from each of these: {listed}.",
}


def condition_sentences(systems: Sequence[Mapping[str, Any]]) -> list[str]:
    """What differs, what is the same and what is unknown.

    Args:
        systems: as in `results.compare`; "parameters" and "config" (the settings of one of its runs) if known, and
            "updates" and "epochs" of each run among "logged".
    """
    listed: dict[str, list[str]] = {name: [] for name in SENTENCES}
    for key, title in CONDITIONS.items():
        values = [_condition(system, key) for system in systems]
        if UNKNOWN in values:
            of = [system["label"] for system, value in zip(systems, values, strict=True) if value == UNKNOWN]
            listed["unknown"].append(title if len(of) == len(systems) else f"{title} of {' and '.join(of)}")
        elif len(set(values)) == 1:
            listed["same"].append(f"{title} {values[0]}")
        else:
            listed["differ"].append(_by_system(title, systems, values))
    if all("config" in system for system in systems):
        rows = differing_settings([system["config"] for system in systems], ignore=(*RUN_SPECIFIC, "decoder"))
        rows += _dropout_rows([system["config"]["decoder"] for system in systems])
        listed["differ"] += [
            _by_system(f"`{key}`", systems, ["none" if value is None else str(value) for value in values])
            for key, values in rows
            if key != "training.learning_rate"  # above
        ]
    return [
        template.format(listed="; ".join(listed[name]))
        for name, template in SENTENCES.items()
        if listed[name]
    ]


def _by_system(title: str, systems: Sequence[Mapping[str, Any]], values: Sequence[str]) -> str:
    each = [f"{system['label']} {value}" for system, value in zip(systems, values, strict=True)]
    return f"{title} ({', '.join(each)})"


def _condition(system: Mapping[str, Any], key: str) -> str:
    """The system's value as text; a range if its runs differ."""
    if key == "parameters":
        return f"{system[key]:,}" if key in system else UNKNOWN
    if key in ("updates", "epochs"):
        values = [run.get(key) for run in system["logged"]]
        if None in values or not values:
            return UNKNOWN
        low, high = min(values), max(values)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"
    config = system.get("config")
    if config is None:
        return UNKNOWN
    if key == "learning_rate":
        return f"{config['training'][key]:g}"
    return " ".join(str(config[key][part]) for part in ("kind", "name") if config[key].get(part))


def _dropout_rows(decoders: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Kinds of dropout that all decoders have, with other probabilities."""
    rows = differing_settings([{"decoder": decoder} for decoder in decoders], ignore=())
    return [(key, values) for key, values in rows if key.endswith("dropout") and None not in values]
