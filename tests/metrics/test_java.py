"""METEOR and SPICE beside pycocoevalcap's own classes, and by stand-ins for Java that fail in every way."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioning.metrics import MetricInput, MetricScore, Scores, Unavailable
from captioning.metrics import spice as spice_module
from captioning.metrics.meteor import Meteor
from captioning.metrics.significance import comparable_metrics, draw_resamples, resample_scores
from captioning.metrics.spice import Spice
from captioning.text.tokenizer import tokenize

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = importlib.util.find_spec("pycocoevalcap")
needs_package = pytest.mark.skipif(PACKAGE is None, reason="pycocoevalcap is not installed")
WORDS = (
    "a the man dog dogs on in grass red ball runs running with two snow café 10 1,000 t-shirt 's -lrb- <unk>"
)


def meteor(references: Any, candidates: Any, **options: Any) -> MetricScore:
    return Meteor(**options).score(MetricInput(references, candidates))


def spice(references: Any, candidates: Any, **options: Any) -> MetricScore:
    return Spice(**options).score(MetricInput(references, candidates))


def captions(seed: int, images: int) -> tuple[list[list[list[str]]], list[list[str]]]:
    """1 to 5 references an image; candidates near, far, repetitive and empty, and words that match nothing."""
    draw = random.Random(seed)
    references, candidates = [], []
    for number in range(images):
        own = [draw.choices(WORDS.split(), k=draw.randint(1, 13)) for _ in range(draw.randint(1, 5))]
        near = [word if draw.random() < 0.7 else "canine" for word in draw.choice(own)]
        references.append(own)
        candidates.append([near, [*near[::-1], "|"], ["a"] * 7, near * 3, []][number % 5])
    return references, candidates


@needs_package
@pytest.mark.skipif(not shutil.which("java"), reason="no Java here")
def test_meteor_as_pycocoevalcap() -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    theirs = Meteor()  # starts its Java, which reads its tables meanwhile
    references, candidates = captions(2, images=97)
    odd = ["a dog\r\nruns\u2028on \x85 grass ||| \0 \U0001f436", "|||", "...", "“né” 日本語 – ½"]
    references += [[tokenize(text), tokenize("a dog runs")] for text in odd]
    candidates += [tokenize(text) for text in odd]
    # white space alone is a word that no reference has, not one left out
    references += [[["a", "dog", "runs"]]] * 3
    candidates += [["a", " ", "runs"], ["a", "zyzzyx", "runs"], ["a", "runs"]]
    mine = meteor(references, candidates)
    assert mine.per_image[-3] == mine.per_image[-2] < mine.per_image[-1]
    words = [[token.replace(" ", "zyzzyx") for token in tokens] for tokens in candidates]
    gts = {row: [" ".join(tokens) for tokens in own] for row, own in enumerate(references)}
    corpus, each = theirs.compute_score(gts, {row: [" ".join(tokens)] for row, tokens in enumerate(words)})
    assert 0.1 < corpus < 0.9 and abs(corpus - np.mean(each)) > 1e-3  # the aggregate is not the mean
    assert mine.corpus == pytest.approx(corpus, abs=1e-9)
    np.testing.assert_allclose(mine.per_image, each, rtol=0, atol=1e-9)

    # a resample's score from summed statistics, beside Java's of the images that were drawn
    whole = Scores.of({"METEOR": mine})
    assert comparable_metrics(whole) == ["METEOR"]
    found = resample_scores([whole], metrics=["METEOR"], resamples=1, seed=5)[0, 0, 0]
    (drawn,) = next(draw_resamples(len(candidates), resamples=1, seed=5))
    again = meteor([references[i] for i in drawn], [candidates[i] for i in drawn])
    assert found == pytest.approx(again.corpus, abs=1e-9) and abs(found - mine.corpus) > 1e-6


def fake_java(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Put a `java` first on PATH that does this instead; asked for its version, it is Java 8."""
    script = folder / "java"
    version = """if "-version" in sys.argv: sys.stderr.write('openjdk version "1.8.0_402"'); sys.exit()"""
    script.write_text(f"#!{sys.executable}\nimport json, os, sys, time\n{version}\n{code}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


STATISTICS = "print(' '.join(['1.0'] * 23), flush=True)"
REFERENCES, CANDIDATES = [[["a", "dog"]], [["a", "cat"], ["one", "cat"]]], [["a", "dog"], ["cat"]]
FAULTS = {
    "killed": (f"input(); {STATISTICS}; os.kill(os.getpid(), 9)", r"METEOR: Java was ended by signal 9"),
    "killed at once": ("os.kill(os.getpid(), 9)", r"METEOR: Java was ended by signal 9"),
    "silent": ("input(); time.sleep(60)", r"METEOR: ended, since Java gave no answer for 1 seconds"),
    "deaf": ("time.sleep(60)", r"METEOR: ended, since Java gave no answer for 1 seconds"),
    "no heap": (
        "sys.exit('Error occurred during initialization of VM\\nCould not reserve enough space')",
        r"METEOR: Java stopped with exit code 1: Error occurred during initialization of VM$",
    ),
    "a loud end": ("sys.stderr.write('x ' * 1_000_000); sys.exit(3)", r"stopped with exit code 3: (x )+x?$"),
    "not numbers": ("input(); print('Error: specify', flush=True); input()", r"got 'Error: specify'"),
}


@needs_package
@pytest.mark.parametrize("fault", FAULTS)
def test_java_that_fails_is_one_sentence(fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, expected = FAULTS[fault]
    fake_java(monkeypatch, tmp_path, code)
    start = time.perf_counter()
    with pytest.raises(Unavailable, match=expected) as caught:
        # what Java doesn't read fills the pipe
        meteor(REFERENCES, [["dog"] * 100_000, ["cat"]], limit=1)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    assert time.perf_counter() - start < 10  # seconds


@needs_package
def test_what_java_is_sent_and_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Java that fills its error output, counts lines and says what it was told."""
    code = f"""
sys.stderr.write("warning " * 1_000_000)
assert "-Dfile.encoding=UTF-8" in sys.argv and "-Xmx1G" in sys.argv and os.path.exists("meteor-1.5.jar")
for number in range(2):
    line = sys.stdin.buffer.readline().decode()
    assert line.count("|||") == 2 + number and len(line.splitlines()) == 1, line
    assert "né" in line, line
    {STATISTICS}
assert sys.stdin.buffer.readline().decode().count("|||") == 2
for number in (0.25, 0.5, 0.75): print(number, flush=True)
time.sleep(60)
"""
    fake_java(monkeypatch, tmp_path, code)
    scores = meteor(REFERENCES, [["né\r\n", "|||"], ["né", "\u2028", "a|||b\x85c"]], heap="1G")
    assert scores.corpus == 0.75 and scores.per_image.tolist() == [0.25, 0.5]


@needs_package
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be told so")
def test_java_ends_with_a_killed_parent(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        pid = tmp_path / "pid"
        fake_java(
            monkeypatch, tmp_path, f"open({str(pid)!r}, 'w').write(f'{{os.getpid()}}.'); time.sleep(60)"
        )
        code = (
            "from captioning.metrics import METRICS, MetricInput\n"
            f"METRICS['METEOR'].score(MetricInput({REFERENCES}, {CANDIDATES}))"
        )
        parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    until(lambda: pid.exists() and pid.read_text().endswith("."))
    child = Path("/proc", pid.read_text().rstrip("."))
    assert child.exists()
    parent.kill()
    parent.wait()
    until(lambda: not child.exists() or "Z (zombie)" in (child / "status").read_text())


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("metric", [meteor, spice])
def test_no_java(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match=r"^(METEOR|SPICE): there is no Java here; install a Java runtime"):
        metric(REFERENCES, CANDIDATES)


@pytest.mark.parametrize("metric", [meteor, spice])
def test_no_package(metric: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(monkeypatch, tmp_path, "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r'program is missing; pip install "captioning\[java\]"$'):
        metric(REFERENCES, CANDIDATES)


@pytest.mark.parametrize("metric", [meteor, spice])
def test_what_cannot_be_scored(metric: Any) -> None:
    with pytest.raises(ValueError, match="no images to score"):
        metric([], [])
    with pytest.raises(ValueError, match="1 candidates for 2 images"):
        metric(REFERENCES, [["a"]])
    with pytest.raises(ValueError, match="image number 1 has no reference"):
        metric([[["a"]], []], CANDIDATES)


class TestSpice:
    """Beside a stand-in for Java: SPICE's own needs models that are not part of any package."""

    @pytest.fixture(autouse=True)
    def folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """A package like pycocoevalcap with SPICE's models in it."""
        lib = tmp_path / "package" / "spice" / "lib"
        lib.mkdir(parents=True)
        for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
            (lib / name).touch()
        monkeypatch.setattr(spice_module, "java_package", lambda metric: tmp_path / "package")
        return lib

    def test_scores(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        code = """
source, result = sys.argv[sys.argv.index("spice-1.0.jar") + 1], sys.argv[sys.argv.index("-out") + 1]
assert "-Xmx3G" in sys.argv and "-subset" in sys.argv and "-silent" in sys.argv
sys.stderr.write("Loading classifier " * 100_000)
entries = json.loads(open(source, encoding="ascii").read())
assert entries[1] == {"image_id": 1, "test": "né", "refs": ["a cat", "one cat"]}, entries
f = [{"All": {"pr": 1.0, "re": 0.5, "f": 0.25 + entry["image_id"]}, "Color": {"f": None}} for entry in entries]
found = [{"image_id": entry["image_id"], "scores": scores} for entry, scores in zip(entries, f)]
open(result, "w").write(json.dumps(found[::-1]))
"""
        fake_java(monkeypatch, tmp_path, code)
        scores = spice(REFERENCES, [["a", "dog"], ["né\n"]], heap="3G")
        assert scores.corpus == 0.75 and scores.per_image.tolist() == [0.25, 1.25]

    @pytest.mark.parametrize(
        ("code", "expected"),
        [
            ("os.kill(os.getpid(), 9)", "SPICE: Java was ended by signal 9"),
            ("time.sleep(60)", "SPICE: ended, since Java gave no answer for 1 seconds"),
            (
                "sys.exit('java.lang.OutOfMemoryError: Java heap space')",
                "exit code 1: java.lang.OutOfMemoryError",
            ),
            ("", r"SPICE: its results cannot be read \(FileNotFoundError: .*scores.json"),
            ("open(sys.argv[sys.argv.index('-out') + 1], 'w').write('[]')", r"cannot be read \(KeyError: 0"),
        ],
    )
    def test_faults(self, code: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        fake_java(monkeypatch, tmp_path, code)
        with pytest.raises(Unavailable, match=expected):
            spice(REFERENCES, CANDIDATES, limit=1)

    def test_missing_models_and_a_java_too_new(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Both in one sentence: the models take long to fetch."""
        fake_java(monkeypatch, tmp_path, "assert False")
        (folder / "stanford-corenlp-3.6.0-models.jar").unlink()
        place = re.escape(str(folder))
        with pytest.raises(
            Unavailable, match=rf"^SPICE: needs \S*-models.jar in {place} \(.*zip of https\S+$"
        ):
            spice(REFERENCES, CANDIDATES)
        fake_java(monkeypatch, tmp_path, "")
        script = tmp_path / "java"
        script.write_text(script.read_text().replace("1.8.0_402", "17.0.15"))
        with pytest.raises(
            Unavailable, match=r"models.jar in .*, and a Java from 8 to 14 .*this one is 17\)$"
        ):
            spice(REFERENCES, CANDIDATES)
