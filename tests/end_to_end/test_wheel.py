"""The wheel, built from the checkout and installed without it, runs the commands and holds the configs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.running import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs the installed command in a given folder; the checkout is not on Python's path."""
    target = tmp_path_factory.mktemp("target")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        target,
        wheel,
    ]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str, cwd: Path) -> str:
        command = [sys.executable, target / "bin" / "captioning", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "import captioning; print(captioning.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=target, env=environment
    )
    assert where.stdout.strip() == str(target / "captioning" / "__init__.py")
    return run


def test_the_wheel_holds_every_file_of_the_package_and_the_configs(wheel):
    """Compared with what git lists, new files included; no tests, no caches."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "captioning", "configs"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    expected = {name for name in done.stdout.splitlines() if (ROOT / name).exists()}
    expected = {name if name.startswith("captioning/") else f"captioning/{name}" for name in expected}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected and "captioning/configs/shapes.yaml" in names


def test_quickstart_runs(installed, tmp_path):
    out = installed("quickstart", "--small", "dataset.train=40", "training.epochs=1", cwd=tmp_path)
    assert (
        "[5/5] Results" in out and (tmp_path / "runs" / "shapes_small" / "model" / "manifest.json").is_file()
    )


def test_a_shipped_study_is_planned(installed, tmp_path):
    out = installed("compare", "study_shapes", "--dry-run", cwd=tmp_path)
    assert out.startswith("study study_shapes: 4 decoders x 3 seeds")


def test_help_lists_the_configs(installed, tmp_path):
    assert "\n  flickr8k_lstm\n" in installed("train", "--help", cwd=tmp_path)
