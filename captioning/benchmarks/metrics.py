"""How fast captions are scored and resampled, beside pycocoevalcap in the same run. Times and compares; no torch."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from captioning.datasets.references import read_references
from captioning.errors import UserError
from captioning.metrics import NAMES, ReferenceCounts, Scores, score
from captioning.metrics.significance import RESAMPLES, paired_bootstrap
from captioning.text import tokenizer

IMAGES, REFERENCES = 5000, 5
TIMED = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")
"""What pycocoevalcap's Bleu, Rouge and Cider give."""

_WHY_NO_PEAK = "counting and looking up words has no matrix product whose rate could be a share of a peak"
_Made = TypeVar("_Made")


class Corpus(NamedTuple):
    """Raw captions of I images: references, and one of each of two systems."""

    references: list[list[str]]
    systems: tuple[list[str], list[str]]


def synthetic(*, seed: int, images: int = IMAGES) -> Corpus:
    """Captions of 7 to 17 words about each image's own few words, in the frequencies that words have (Zipf)."""
    generator = np.random.default_rng(seed)
    syllables = [first + second for first in "bdfgklmnprst" for second in "aeiou"]
    names = [
        first + second + third for first in syllables for second in syllables for third in ("", "s", "ing")
    ]
    frequent = [
        "a",
        "the",
        "on",
        "of",
        "in",
        "with",
        "and",
        "man's",
        "sitting",
        "next",
        "to",
        "two",
        "t-shirt",
        "is",
    ]
    words = np.array([*frequent, *names])
    share = 1 / np.arange(3, len(words) + 3)
    share /= share.sum()

    captions, longest = REFERENCES + 2, 17
    shape = (images, captions, longest)
    topics = generator.choice(words, (images, 9), p=share)
    about = topics[np.arange(images)[:, None, None], generator.integers(0, 9, shape)]
    chosen = np.where(generator.random(shape) < 0.4, about, generator.choice(words, shape, p=share))
    lengths = np.clip(generator.normal(10.5, 2.3, shape[:2]), 7, longest).astype(int)
    # not "... a.", whose last token hangs on the next caption in Java
    last = generator.choice(names, shape[:2])
    stop = np.where(generator.random(shape[:2]) < 0.7, ".", "")
    texts = [
        [
            " ".join([*own[: length - 1], end]).capitalize() + mark
            for own, length, end, mark in zip(*parts, strict=True)
        ]
        for parts in zip(chosen.tolist(), lengths, last, stop, strict=True)
    ]
    references = [own[:REFERENCES] for own in texts]
    return Corpus(references, ([own[-2] for own in texts], [own[-1] for own in texts]))


def real(path: str, *, seed: int) -> Corpus:
    """The first references of each image in a file of captions; the systems are copies of one with words replaced.

    Raises:
        UserError: as `read_references`, or the file has several splits.
    """
    generator = np.random.default_rng(seed)
    references = [list(record.captions[:REFERENCES]) for record in read_references(path).records]
    words = np.array([word for own in references for word in own[0].split()])
    systems = ([], [])  # type: ignore[var-annotated]
    for own in references:
        for system in systems:
            tokens = generator.choice(own).split()
            replaced = generator.random(len(tokens)) < 0.3
            system.append(" ".join(np.where(replaced, generator.choice(words, len(tokens)), tokens)))
    return Corpus(references, systems)


def benchmark_metrics(*, repeats: int = 3, captions: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Tokenizing, BLEU, ROUGE-L and CIDEr-D of 5,000 images with 5 references each, and resampling the images.

    Both start from raw text in every repeat; what our tokenizer remembers of words is forgotten before each.

    Args:
        captions: a file of reference captions (one split) to be used instead of made-up ones.

    Raises:
        UserError: pycocoevalcap is missing, or the file cannot be read.
        RuntimeError: the two disagree by more than 1e-6.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError:
        raise UserError(
            'pycocoevalcap is not installed; install it with pip install "captioning[java]"'
        ) from None
    corpus = real(captions, seed=seed) if captions else synthetic(seed=seed)
    java, why_no_java = _java(corpus)
    tokens = None if java else _tokens(corpus.references, corpus.systems[0])
    seconds: dict[str, list[float]] = {"ours": [], "tokenizer": [], "Bleu": [], "Rouge": [], "Cider": []}

    def timed(name: str, work: Callable[[], _Made]) -> _Made:
        began = time.perf_counter()
        result = work()
        seconds[name].append(time.perf_counter() - began)
        return result

    ours: Scores | None = None
    differences: list[float] = []
    for _ in range(repeats):
        tokenizer._scan.cache_clear()
        ours = timed("ours", lambda: _ours(corpus.references, corpus.systems[0], TIMED))
        own, candidates = timed("tokenizer", lambda: _java_tokens(corpus)) if tokens is None else tokens
        with contextlib.redirect_stdout(io.StringIO()):
            bleu = timed("Bleu", partial(Bleu(4).compute_score, own, candidates, verbose=0))
            rouge = timed("Rouge", partial(Rouge().compute_score, own, candidates))
            cider = timed("Cider", partial(Cider().compute_score, own, candidates))
        theirs = (bleu, rouge, cider)
        whole = np.hstack([corpus_score for corpus_score, _ in theirs])
        each = np.vstack([scores for _, scores in theirs])
        differences.append(float(np.abs(whole - [ours.corpus[name] for name in TIMED]).max()))
        differences.append(float(np.abs(each - [ours.per_image[name] for name in TIMED]).max()))
    if max(differences) > 1e-6:  # a benchmark of two different things would be worth nothing
        raise RuntimeError(f"the two disagree by {max(differences):.2g}")

    both = [_ours(corpus.references, system, NAMES) for system in corpus.systems]
    began = time.perf_counter()
    paired_bootstrap(both[0], both[1], metrics=NAMES, resamples=RESAMPLES, seed=seed)
    bootstrap = time.perf_counter() - began
    parts = {name: times for name, times in seconds.items() if name != "ours" and times}
    totals = [sum(times) for times in zip(*parts.values(), strict=True)]
    images, middle = len(corpus.references), statistics.median(seconds["ours"])
    return {
        "name": "metrics",
        "ratio": statistics.median(
            theirs / ours for theirs, ours in zip(totals, seconds["ours"], strict=True)
        ),
        "ours_per_s": images / middle,
        "pycocoevalcap_per_s": images / statistics.median(totals),
        "unit": "images",
        "peak_share": None,
        "peak_share_why": _WHY_NO_PEAK,
        "images": images,
        "references": sum(map(len, corpus.references)),
        "captions": captions or "made up",
        "seconds": middle,
        "pycocoevalcap_seconds": {name: statistics.median(times) for name, times in parts.items()},
        "java": java,
        "java_why": why_no_java,
        "largest_difference": max(differences),
        "bootstrap_seconds": bootstrap,
        "resamples": RESAMPLES,
        "bootstrap_metrics": list(NAMES),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "numpy": np.__version__,
        "repeats": repeats,
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """The result in a few lines for a person."""
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in result["pycocoevalcap_seconds"].items())
    return [
        f"ours          {result['ours_per_s']:8.0f} images/s   {result['seconds']:.2f} s, tokenizing included",
        f"pycocoevalcap {result['pycocoevalcap_per_s']:8.0f} images/s   seconds: {parts}",
        f"{result['ratio']:.2f} times as fast on {result['images']:,} images with {result['references']:,} references "
        f"({result['captions']}), scores the same to {result['largest_difference']:.1g}",
        f"bootstrap: {result['bootstrap_seconds']:.2f} s for {result['resamples']:,} resamples of "
        f"{len(result['bootstrap_metrics'])} metrics",
        *([f"without pycocoevalcap's tokenizer: {result['java_why']}"] if result["java_why"] else []),
    ]


def _tokens(
    references: Sequence[Sequence[str]], system: Sequence[str]
) -> tuple[dict[int, Any], dict[int, Any]]:
    """By our tokenizer, in pycocoevalcap's form: image number to texts whose tokens are parted by spaces."""
    own = {i: [" ".join(tokenizer.tokenize(text)) for text in texts] for i, texts in enumerate(references)}
    return own, {i: [" ".join(tokenizer.tokenize(text))] for i, text in enumerate(system)}


def _java_tokens(corpus: Corpus) -> tuple[dict[int, Any], dict[int, Any]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    own = {i: [{"caption": text} for text in texts] for i, texts in enumerate(corpus.references)}
    candidates = {i: [{"caption": text}] for i, text in enumerate(corpus.systems[0])}
    return PTBTokenizer().tokenize(own), PTBTokenizer().tokenize(candidates)


def _java(corpus: Corpus) -> tuple[str | None, str | None]:
    """Java's version, or why pycocoevalcap's tokenizer cannot be run."""
    if shutil.which("java") is None:
        return None, "there is no Java on PATH"
    try:
        told = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=60, check=True)
        _java_tokens(Corpus(corpus.references[:2], (corpus.systems[0][:2], corpus.systems[1][:2])))
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"it cannot be run ({type(error).__name__}: {error})"
    return (told.stderr or told.stdout).partition("\n")[0].strip(), None


def _ours(references: Sequence[Sequence[str]], system: Sequence[str], names: Sequence[str]) -> Scores:
    own = ReferenceCounts([[tokenizer.tokenize(text) for text in texts] for texts in references])
    return score(own, [tokenizer.tokenize(text) for text in system], metrics=names)
