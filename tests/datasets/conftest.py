"""Fixtures for the tests of data sets."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`skipped.csv` is written to the working folder if no path is given."""
    monkeypatch.chdir(tmp_path)
