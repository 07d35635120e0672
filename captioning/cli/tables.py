"""Text tables of scores for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from captioning.metrics.evaluation import CIDER_D_NOTE, Evaluation


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns, the first one left-aligned and the others right-aligned."""
    widths = [max(9, *(len(row[column]) + 3 for row in rows)) for column in range(len(rows[0]))]
    return [
        row[0].ljust(widths[0])
        + "".join(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


def split_table(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Lines of a table with a column for each split and a row for each score; what papers call CIDEr below it."""
    columns = list(evaluations.values())
    coverages = [column.signature["coverage"] for column in columns]
    complete = all(coverage["share"] == 1 for coverage in coverages)
    images = [
        str(coverage["scored"]) if complete else f"{coverage['scored']} of {coverage['images']}"
        for coverage in coverages
    ]
    rows = [["", *evaluations], ["images", *images]]
    for name in columns[0].scores:
        printed = [column.printed(name) for column in columns]
        rows.append([name + printed[0][1], *(f"{value:.2f}" for value, _ in printed)])
    return [*align(rows), *cider_note(columns[0].scores)]


def comparison_table(comparison: Mapping[str, Any], scales: Mapping[str, float]) -> list[str]:
    """Lines with a row for each metric: both systems, their difference with its interval, p and Holm's p."""
    rows = [["", "a", "b", "a - b", "95 % interval", "p", "Holm's p"]]
    for name, test in comparison["comparison"].items():
        a, b, difference, low, high = (
            scales[name] * test[key] for key in ("a", "b", "difference", "low", "high")
        )
        numbers = [f"{a:.2f}", f"{b:.2f}", f"{difference:+.2f}", f"{low:+.2f} .. {high:+.2f}"]
        floor = "<= " if test["at_floor"] else ""
        rows.append([name, *numbers, f"{floor}{test['p']:.4f}", f"{floor}{test['p_holm']:.4f}"])
    lines = [f"a: {comparison['predictions'][0]}", f"b: {comparison['predictions'][1]}", *align(rows)]
    if comparison["not_compared"]:
        lines.append(f"cannot be resampled, so not compared: {', '.join(comparison['not_compared'])}")
    return [*lines, f"{comparison['resamples']:,} resamples: {comparison['method']}"]


def cider_note(names: Any) -> list[str]:
    """The line that says what papers call CIDEr, if `names` has CIDEr or CIDEr-D."""
    return [CIDER_D_NOTE] if {"CIDEr", "CIDEr-D"} & set(names) else []
