"""CSV files: rows with the line they begin at, and headers without repeated or empty names."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence

from captioning.errors import UserError
from captioning.utils.files import read_text

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_csv(path: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers (of a row's first line, from 1) and fields of a CSV file, header included, blank rows not.

    Raises:
        UserError: as `read_text`, or a quote is unclosed or misplaced (with the line where its row begins).
    """
    reader = csv.reader(io.StringIO(read_text(path), newline="\n"), strict=True)
    begin = 1
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield begin, row
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}: broken CSV at line {begin}: {_explain(str(error))}") from None


def _explain(problem: str) -> str:
    """The reader's message in terms of the file."""
    if "new-line character" in problem:
        return "a lone carriage return; save the file with the same line end everywhere"
    if "end of data" in problem or "field limit" in problem:
        return "a quote is opened in this row and not closed; close it, or write a quote in a caption twice"
    return f'{problem}; put the whole field in quotes, and write a quote in it twice ("")'


def read_table(path: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows of a CSV file, as cells by their column's name in lower case.

    Args:
        columns: names that the header must contain.

    Raises:
        UserError: as `read_csv`; a name is missing, empty or repeated; or a row is longer or shorter than the header.
    """
    rows = read_csv(path)
    _, header = next(rows, (1, list[str]()))
    refuse_other_separator(path, header)
    names = [name.strip().lower() for name in header]
    require_columns(path, names, columns)
    if "" in names:
        raise UserError(
            f"{path}: column {names.index('') + 1} has no name (header {','.join(header)[:80]!r}); name or remove it"
        )
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f"{path}: the header names {repeated[0]!r} twice ({','.join(header)[:80]!r}); rename one of the columns"
        )
    for line, row in rows:
        if len(row) != len(names):
            raise UserError(
                f"{path}: line {line} has {len(row)} columns, its header {len(names)}; put captions that contain "
                "commas in double quotes, and leave empty cells between commas"
            )
        yield line, dict(zip(names, row, strict=True))


def refuse_other_separator(path: str, header: Sequence[str]) -> None:
    """Raise UserError if a header, split at commas, is a single name that contains another separator."""
    for separator, name in SEPARATORS.items():
        if len(header) == 1 and separator in header[0]:
            raise UserError(
                f"{path}: its columns are separated by {name} (header {header[0][:80]!r}); save it with commas"
            )


def require_columns(where: str, found: Sequence[str], columns: Sequence[str]) -> None:
    """Raise UserError if one of `columns` is not among the names `found`."""
    missing = [name for name in columns if name not in found]
    if missing:
        raise UserError(
            f"{where}: {' and '.join(missing)} missing (found {', '.join(found[:8]) or 'nothing'}); "
            f"rename the columns to {','.join(columns)} and, optionally, split"
        )
