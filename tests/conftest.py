"""Settings for all tests: threads and parallel processes."""

import os

import pytest

# One thread a process, because pytest-xdist runs several. Read when torch is imported, also in subprocesses.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes for `-n auto`: one per core, 4 at most (1 GB each); none if files or tests are named."""
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        return 0
    return min(4, os.cpu_count() or 1)
