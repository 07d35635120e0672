"""The shipped configs parse, and their first line is the command that uses them."""

import re
import subprocess

import pytest

from captioning.comparison.study import read_study
from captioning.config import read_config
from tests.helpers.running import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
STUDIES = [path for path in CONFIGS if path.stem.startswith("study_")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_parses_and_begins_with_its_command(path):
    command, *comments = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    if path in STUDIES:
        assert read_study(str(path)).name == path.stem
        assert re.match(rf"# captioning compare {path.stem}( |$)", command)
    else:
        assert read_config(path).name == path.stem
        assert re.match(rf"# captioning train {path.stem}( |$)", command)
    text = "\n".join(comments)
    assert "Not trained yet" in text or ("Time: " in text and re.search("Expected on |Results: ", text))


def test_overrides_in_a_command_are_settings_of_the_config():
    for path in set(CONFIGS) - set(STUDIES):
        read_config(path, re.findall(r" (\w+\.\w+=\S+)", path.read_text().splitlines()[0]))


def test_the_slurm_script_is_valid_bash():
    script = ROOT / "configs" / "slurm_example.sh"
    subprocess.run(["bash", "-n", script], check=True)
    name = re.search(r"slurm_example\.sh (\w+) ", script.read_text())
    assert name and read_config(name[1]).name == name[1]
