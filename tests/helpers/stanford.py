"""Stanford's tokenizer in Java, called as coco-caption calls it; skips the test if Java or the jar is missing."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from captioning.text.tokenizer import DROPPED

JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
LINE_ENDS = re.compile("[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]")
"""Line ends for Java or for a scorer; in coco-caption they shift captions to other images."""


def stanford(captions: Sequence[str], folder: Path) -> list[list[str]]:
    """The Java tokenizer's tokens of each caption, in one process; line ends are replaced by spaces."""
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not shutil.which("java"):
        pytest.skip("needs Java" if package else "pycocoevalcap is not installed")
    file = folder / "captions.txt"
    # each caption is followed by a line that begins a sentence: the original looks for one across line ends
    lines = [f"{LINE_ENDS.sub(' ', caption)}\nA dog\n" for caption in captions]
    file.write_text("".join(lines), encoding="utf-8", newline="\n")
    jar = Path(next(iter(package.submodule_search_locations or ())), JAR)
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase", str(file)],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=True,
        timeout=120,
    )
    output = done.stdout.decode().split("\n")
    assert len(output) == 2 * len(captions) + 1 and set(output[1::2]) == {"a dog"}  # nothing was shifted
    # scorers split the joined line again, also at no-break spaces
    return [
        " ".join(word for word in line.split(" ") if word not in DROPPED).split() for line in output[:-1:2]
    ]
