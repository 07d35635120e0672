"""Fixtures of the command line tests."""

from pathlib import Path

import pytest

from tests.helpers.scoring import (
    CAPTIONS,
    results,
)


@pytest.fixture
def predictions(tmp_path) -> Path:
    return results(tmp_path / "p.json", CAPTIONS)
