"""The code keeps the house rules: ruff, mypy, the floors, configs that parse, no mention of a machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "ruff", "check", "."],
        ["-m", "mypy"],
        ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
    ],
    ids=["ruff", "mypy", "floors"],
)
def test_checks_pass(command):
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("tool", sorted(path.name for path in (ROOT / "tools").glob("*.py")))
def test_help_teaches_without_importing_torch(tool):
    """The promise is half a second; what decides it is whether torch was imported, and that can be told exactly."""
    watch = (
        "import runpy, sys\n"
        f"sys.argv = [{tool!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'tools' / tool)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules, 'imports torch before it has read its arguments'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", watch], capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"}
    )
    assert done.returncode == 0, done.stderr
    command = tool.removesuffix(".py").replace("inspect_model", "inspect")
    assert f"captioning {command} " in done.stdout, "shows no example"
