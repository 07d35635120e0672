"""The command `captioning`: its subcommands, help, version and messages, and the scripts in tools/."""

import subprocess
import sys

import pytest

import captioning
from captioning.cli.main import COMMANDS
from tests.helpers.running import ROOT, python

HELP_SECONDS = 0.5

# In a fresh interpreter: prints the CPU time and the modules that must not be imported, then the exit code.
MEASURE = f"""
import sys, time
from captioning.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code
heavy = {{"torch", "torchvision", "numpy", "pydantic", "matplotlib", "nltk"}} & set(sys.modules)
print(code, sorted(heavy), time.process_time() < {HELP_SECONDS}, file=sys.stderr)
"""


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["prepare", "shard"]], ids="-".join)
def test_help_is_fast_and_gives_examples(command):
    """CPU time, because other processes make the clock's time longer."""
    done = python(MEASURE, *command, "--help")
    assert done.err == "0 [] True\n"
    assert done.out.startswith(" ".join(["usage: captioning", *command]))
    assert f"\n  {' '.join(['captioning', *command])} " in done.out


def test_help_lists_every_command():
    out = python(MEASURE, "--help").out
    assert all(f"\n  {name} " in out and text in out for name, text in COMMANDS.items())


def test_every_module_with_a_main_is_a_command():
    modules = {
        path.stem for path in (ROOT / "captioning" / "cli").glob("*.py") if "def main(" in path.read_text()
    }
    assert modules - {"main"} == set(COMMANDS)


def test_version():
    done = subprocess.run([sys.executable, "-m", "captioning", "--version"], capture_output=True, cwd=ROOT)
    assert done.stdout.decode() == f"captioning {captioning.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: unknown command 'trian'; did you mean `captioning train`?"),
        (["evaluat", "runs/a"], "error: unknown command 'evaluat'; did you mean `captioning evaluate`?"),
        (["xyz"], "error: unknown command 'xyz'; the commands are quickstart, prepare, "),
        (["--verbose"], "error: unknown option '--verbose'; the commands are "),
    ],
)
def test_an_unknown_command_is_refused_in_one_sentence(arguments, message):
    done = python(MEASURE, *arguments)
    assert done.out == ""
    error, code = done.err.splitlines()
    assert error.startswith(message) and code.startswith("2 ")


def test_no_command_prints_the_usage():
    done = python(MEASURE)
    assert done.out.startswith("usage: captioning ") and done.err.startswith("2 ")


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.stem)
def test_the_scripts_run_the_commands(path, tmp_path):
    """tools/NAME.py prints the help of its command, from any folder."""
    command = "inspect" if path.stem == "inspect_model" else path.stem
    done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: captioning {command} ")


def test_the_scripts_do_not_hide_standard_modules():
    """Python looks into a script's folder first: a tools/inspect.py would break `dataclasses`."""
    names = {path.stem for path in (ROOT / "tools").glob("*.py")}
    assert len(names) == len(COMMANDS) and not names & sys.stdlib_module_names
