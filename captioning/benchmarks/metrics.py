"""Benchmark of metrics: tokenizing, scoring and resampling captions against pycocoevalcap. Runs without torch."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from captioning.benchmarks.harness import NO_PYCOCOEVALCAP, interleave, median_ratio, timed
from captioning.datasets.references import read_references
from captioning.metrics import NAMES, ReferenceCounts, Scores, score
from captioning.metrics.significance import RESAMPLES, paired_bootstrap
from captioning.text import tokenizer

IMAGES, REFERENCES, LONGEST = 5000, 5, 17
TIMED = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")
"""The scores of pycocoevalcap's classes Bleu, Rouge and Cider; `Cider` computes CIDEr-D."""

FREQUENT = [
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


class Corpus(NamedTuple):
    """Raw captions of I images: their references, and the captions of two systems."""

    references: list[list[str]]
    systems: tuple[list[str], list[str]]


def synthetic(*, seed: int, images: int = IMAGES) -> Corpus:
    """Captions of 7 to 17 words, 40 % of them from the image's own few words, with Zipf's word frequencies."""
    generator = np.random.default_rng(seed)
    syllables = [first + second for first in "bdfgklmnprst" for second in "aeiou"]
    names = [
        first + second + third for first in syllables for second in syllables for third in ("", "s", "ing")
    ]
    words = np.array([*FREQUENT, *names])
    share = 1 / np.arange(3, len(words) + 3)
    share /= share.sum()

    shape = (images, REFERENCES + 2, LONGEST)
    topics = generator.choice(words, (images, 9), p=share)
    on_topic = topics[np.arange(images)[:, None, None], generator.integers(0, 9, shape)]
    chosen = np.where(generator.random(shape) < 0.4, on_topic, generator.choice(words, shape, p=share))
    lengths = np.clip(generator.normal(10.5, 2.3, shape[:2]), 7, LONGEST).astype(int)
    # not "... a.", whose last token depends on the next caption in Java
    last = generator.choice(names, shape[:2])
    stop = np.where(generator.random(shape[:2]) < 0.7, ".", "")
    texts = [
        [
            " ".join([*caption[: length - 1], end]).capitalize() + mark
            for caption, length, end, mark in zip(*image, strict=True)
        ]
        for image in zip(chosen.tolist(), lengths, last, stop, strict=True)
    ]
    references = [captions[:REFERENCES] for captions in texts]
    return Corpus(references, ([captions[-2] for captions in texts], [captions[-1] for captions in texts]))


def real(path: str, *, seed: int) -> Corpus:
    """The first references of each image in a file; the systems are references with some words replaced.

    Raises:
        UserError: as `read_references`, or the file has several splits.
    """
    generator = np.random.default_rng(seed)
    references = [list(record.captions[:REFERENCES]) for record in read_references(path).records]
    words = np.array([word for captions in references for word in captions[0].split()])
    systems: tuple[list[str], list[str]] = ([], [])
    for captions in references:
        for system in systems:
            tokens = generator.choice(captions).split()
            replaced = generator.random(len(tokens)) < 0.3
            system.append(" ".join(np.where(replaced, generator.choice(words, len(tokens)), tokens)))
    return Corpus(references, systems)


def benchmark_metrics(*, repeats: int = 3, captions: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Tokenizing, BLEU, ROUGE-L and CIDEr-D of 5,000 images with 5 references each, and resampling the images.

    Both contenders start from raw text; our tokenizer's cache is emptied before every round.

    Args:
        captions: a file of reference captions (one split) to use instead of synthetic ones.

    Raises:
        UserError: pycocoevalcap is missing, or the file cannot be read.
        RuntimeError: the contenders' scores differ by more than 1e-6.
    """
    corpus = real(captions, seed=seed) if captions else synthetic(seed=seed)
    java, why_no_java = _java(corpus)
    outputs: dict[str, list[Any]] = {}
    contenders = _contenders(corpus, outputs, java=java is not None)
    with contextlib.redirect_stdout(io.StringIO()):
        seconds = interleave(
            contenders, repeats=repeats, warm_up=False, before_round=tokenizer._scan.cache_clear
        )
    difference = _largest_difference(outputs)
    if difference > 1e-6:
        raise RuntimeError(f"the contenders disagree by {difference:.2g}")

    scores = [_score(corpus.references, system, NAMES) for system in corpus.systems]
    bootstrap, _ = timed(partial(paired_bootstrap, *scores, metrics=NAMES, resamples=RESAMPLES, seed=seed))
    steps = {name: times for name, times in seconds.items() if name != "ours"}
    totals = [sum(times) for times in zip(*steps.values(), strict=True)]
    images, median = len(corpus.references), statistics.median(seconds["ours"])
    return {
        "name": "metrics",
        "ratio": median_ratio({**seconds, "pycocoevalcap": totals}, "pycocoevalcap"),
        "ours_per_s": images / median,
        "pycocoevalcap_per_s": images / statistics.median(totals),
        "unit": "images",
        "peak_share": None,
        "peak_share_why": "counting and looking up words has no matrix product whose rate could be a share of a peak",
        "images": images,
        "references": sum(map(len, corpus.references)),
        "captions": captions or "synthetic",
        "seconds": median,
        "pycocoevalcap_seconds": {name: statistics.median(times) for name, times in steps.items()},
        "java": java,
        "java_why": why_no_java,
        "largest_difference": difference,
        "bootstrap_seconds": bootstrap,
        "resamples": RESAMPLES,
        "bootstrap_metrics": list(NAMES),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "numpy": np.__version__,
        "repeats": repeats,
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """The result as printed lines."""
    steps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in result["pycocoevalcap_seconds"].items())
    rows = [
        f"ours          {result['ours_per_s']:8.0f} images/s   {result['seconds']:.2f} s including tokenizing",
        f"pycocoevalcap {result['pycocoevalcap_per_s']:8.0f} images/s   seconds: {steps}",
        f"{result['ratio']:.2f} times as fast on {result['images']:,} images with {result['references']:,} references "
        f"({result['captions']}); scores equal to {result['largest_difference']:.1g}",
        f"bootstrap: {result['bootstrap_seconds']:.2f} s for {result['resamples']:,} resamples of "
        f"{len(result['bootstrap_metrics'])} metrics",
    ]
    if result["java_why"]:
        rows.append(f"without pycocoevalcap's tokenizer: {result['java_why']}")
    return rows


def _contenders(
    corpus: Corpus, outputs: dict[str, list[Any]], *, java: bool
) -> dict[str, Callable[[], None]]:
    """Our scoring and the steps of pycocoevalcap's, which append their results to `outputs`.

    Args:
        java: use pycocoevalcap's tokenizer; without Java ours, not timed.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError:
        raise NO_PYCOCOEVALCAP from None
    system = corpus.systems[0]
    tokens = [] if java else [_tokens(corpus.references, system)]
    outputs |= {"ours": [], "tokenizer": tokens, "Bleu": [], "Rouge": [], "Cider": []}

    def theirs(name: str, compute: Callable[..., Any], **options: Any) -> None:
        outputs[name].append(compute(*outputs["tokenizer"][-1], **options))

    contenders: dict[str, Callable[[], None]] = {
        "ours": lambda: outputs["ours"].append(_score(corpus.references, system, TIMED)),
        "tokenizer": lambda: outputs["tokenizer"].append(_java_tokens(corpus)),
        "Bleu": partial(theirs, "Bleu", Bleu(4).compute_score, verbose=0),
        "Rouge": partial(theirs, "Rouge", Rouge().compute_score),
        "Cider": partial(theirs, "Cider", Cider().compute_score),
    }
    if not java:
        del contenders["tokenizer"]
    return contenders


def _largest_difference(outputs: Mapping[str, list[Any]]) -> float:
    """Between ours and pycocoevalcap's scores, of the corpus and of every image, in any round."""
    differences = []
    rounds = zip(outputs["ours"], outputs["Bleu"], outputs["Rouge"], outputs["Cider"], strict=True)
    for ours, *theirs in rounds:
        corpus = np.hstack([corpus_score for corpus_score, _ in theirs])
        per_image = np.vstack([scores for _, scores in theirs])
        differences.append(np.abs(corpus - [ours.corpus[name] for name in TIMED]).max())
        differences.append(np.abs(per_image - [ours.per_image[name] for name in TIMED]).max())
    return float(max(differences))


def _tokens(
    references: Sequence[Sequence[str]], system: Sequence[str]
) -> tuple[dict[int, Any], dict[int, Any]]:
    """Our tokens in pycocoevalcap's form: image number -> texts with tokens separated by spaces."""
    joined = {
        image: [" ".join(tokenizer.tokenize(text)) for text in texts]
        for image, texts in enumerate(references)
    }
    return joined, {image: [" ".join(tokenizer.tokenize(text))] for image, text in enumerate(system)}


def _java_tokens(corpus: Corpus) -> tuple[dict[int, Any], dict[int, Any]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    references = {i: [{"caption": text} for text in texts] for i, texts in enumerate(corpus.references)}
    candidates = {i: [{"caption": text}] for i, text in enumerate(corpus.systems[0])}
    return PTBTokenizer().tokenize(references), PTBTokenizer().tokenize(candidates)


def _java(corpus: Corpus) -> tuple[str | None, str | None]:
    """Java's version, or the reason why pycocoevalcap's tokenizer cannot run."""
    if shutil.which("java") is None:
        return None, "there is no Java on PATH"
    try:
        version = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=60, check=True)
        _java_tokens(Corpus(corpus.references[:2], (corpus.systems[0][:2], corpus.systems[1][:2])))
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        return None, f"it cannot be run ({type(error).__name__}: {error})"
    return (version.stderr or version.stdout).partition("\n")[0].strip(), None


def _score(references: Sequence[Sequence[str]], system: Sequence[str], metrics: Sequence[str]) -> Scores:
    counts = ReferenceCounts([[tokenizer.tokenize(text) for text in texts] for texts in references])
    return score(counts, [tokenizer.tokenize(text) for text in system], metrics=metrics)
