"""Rules for all files: ruff, mypy, import layers, module docstrings, names, sizes."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from tests.helpers.running import ROOT

CHECKS = {
    "ruff": ["-m", "ruff", "check", "."],
    "format": ["-m", "ruff", "format", "--check", "."],
    "mypy": ["-m", "mypy"],
    "import layers": ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
}
SOURCES = sorted([*(ROOT / "captioning").rglob("*.py"), *(ROOT / "tools").glob("*.py")])
FILE_LINES, FUNCTION_LINES = 450, 60

# Private words that were replaced by the field's: `encode_memory`, `State`, `AttentionMemory`, `KVCache` and so on.
OLD_NAMES = {"remember", "Carry", "Seen", "Prefixes", "LoopLinear", "WordScores", "in_parts", "yardstick"}
OLD_NAMES |= {"own_words", "insist", "by_banks", "grown"}
PERSONIFIED = re.compile(r"\bKnows\b|\bknows (no|nothing|any|only)\b")


@pytest.mark.parametrize("command", CHECKS.values(), ids=CHECKS)
def test_checks_pass(command):
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_begin_with_a_sentence_about_their_content():
    wrong = []
    for path in SOURCES:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = docstring.split("\n")[0]
        if not first or first.endswith((",", ";")) or PERSONIFIED.search(docstring):
            wrong.append(f"{path.relative_to(ROOT)}: {first!r}")
    assert not wrong, "\n".join(wrong)


def test_replaced_names_do_not_return():
    """No replaced name as an identifier; no personification ("Knows no model") in text."""
    tests = (path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
    wrong = []
    for path in [*SOURCES, *tests]:
        text = path.read_text(encoding="utf-8")
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and token.string in OLD_NAMES:
                wrong.append(f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string}")
        for number, line in enumerate(text.splitlines(), 1):
            if PERSONIFIED.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


def test_files_and_functions_are_short():
    wrong = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        name, lines = path.relative_to(ROOT), len(text.splitlines())
        if lines > FILE_LINES:
            wrong.append(f"{name}: {lines} lines, more than {FILE_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    wrong.append(
                        f"{name}:{node.lineno}: {node.name} has {lines} lines, more than {FUNCTION_LINES}"
                    )
    assert not wrong, "\n".join(wrong)


def test_one_loader_opens_image_files():
    """Formats, sizes and damage are checked in `images.reading` only."""
    opener = re.compile(r"\bImage\.open\(|\bimread\(|\btorchvision\.io\b")
    allowed = {
        "captioning/images/reading.py",
        "captioning/training/wandb_process.py",
    }  # the latter: our own PNGs
    found = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if opener.search(path.read_text(encoding="utf-8"))
    }
    assert found == allowed
