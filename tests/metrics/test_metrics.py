"""BLEU, ROUGE-L, CIDEr and CIDEr-D beside pycocoevalcap, NLTK and plain slow versions of the formulas."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioning.errors import UserError
from captioning.metrics import NAMES, DocumentFrequencies, ReferenceCounts, score
from captioning.metrics.bleu import bleu
from captioning.metrics.ngrams import count_ngrams
from captioning.metrics.rouge import longest_common_subsequence

Tokens = list[str]
WORDS = ["a", "the", "man", "dog", "on", "in", "grass", "red", "ball", "runs", "with", "two", "snow"]


def corpus(seed: int, images: int = 23) -> tuple[list[list[Tokens]], list[Tokens]]:
    """Images with 1 to 5 references, candidates near and far, empty and repetitive ones too."""
    draw = random.Random(seed)
    references = [
        [draw.choices(WORDS, k=draw.randint(1, 13)) for _ in range(draw.randint(1, 5))] for _ in range(images)
    ]
    candidates = []
    for number, own in enumerate(references):
        near = [word if draw.random() < 0.8 else draw.choice([*WORDS, "unseen"]) for word in draw.choice(own)]
        far = draw.choices(WORDS, k=draw.randint(1, 17))
        candidates.append([near, far, ["a"] * 7, near * 3, []][number % 5])
    return references, candidates


def reference_scores(
    scorer: Any, references: list[list[Tokens]], candidates: list[Tokens]
) -> tuple[Any, Any]:
    """A pycocoevalcap scorer's corpus and per-image figures."""
    gts = {i: [" ".join(tokens) for tokens in own] for i, own in enumerate(references)}
    res = {i: [" ".join(tokens)] for i, tokens in enumerate(candidates)}
    more = {"verbose": 0} if scorer.method() == "Bleu" else {}
    return scorer.compute_score(gts, res, **more)


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_as_pycocoevalcap(seed: int) -> None:
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references, candidates = corpus(seed)
    ours = score(references, candidates)
    whole, each = reference_scores(Bleu(4), references, candidates)
    for order, name in enumerate(NAMES[:4]):
        assert ours.corpus[name] == pytest.approx(whole[order], abs=1e-12)
        np.testing.assert_allclose(ours.per_image[name], each[order], atol=1e-12)
    for name, scorer in (("ROUGE-L", Rouge()), ("CIDEr-D", Cider())):  # its "Cider" is CIDEr-D
        whole, each = reference_scores(scorer, references, candidates)
        assert whole > 0.1
        assert ours.corpus[name] == pytest.approx(whole, abs=1e-12)
        np.testing.assert_allclose(ours.per_image[name], each, atol=1e-12)


def plain_cider(references: list[list[Tokens]], candidates: list[Tokens], *, clipped: bool) -> list[float]:
    """Equations 1 to 3 of Vedantam et al. (2015) written down one by one, with the published code's x10."""

    def grams(tokens: Tokens, n: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    scores = []
    for own, candidate in zip(references, candidates, strict=True):
        total = 0.0
        for n in (1, 2, 3, 4):
            seen = Counter(gram for image in references for gram in {g for r in image for g in grams(r, n)})

            def weigh(tokens: Tokens, n: int = n, seen: Counter[Any] = seen) -> dict[Any, float]:
                counts = grams(tokens, n)
                return {g: k * math.log(len(references) / max(1, seen[g])) for g, k in counts.items()}

            c = weigh(candidate)
            for reference in own:
                r = weigh(reference)
                norms = math.sqrt(sum(v * v for v in c.values())) * math.sqrt(sum(v * v for v in r.values()))
                if not norms:
                    continue
                same = set(c) & set(r)
                dot = sum((min(c[g], r[g]) if clipped else c[g]) * r[g] for g in same)
                gap = max(len(candidate) - 1, 0) - max(len(reference) - 1, 0)
                total += dot / norms * (math.exp(-(gap**2) / 72) if clipped else 1) / len(own)
        scores.append(10 * total / 4)
    return scores


@pytest.mark.parametrize(("name", "clipped"), [("CIDEr", False), ("CIDEr-D", True)])
def test_cider_as_written_in_the_paper(name: str, clipped: bool) -> None:
    references, candidates = corpus(7, images=11)
    ours = score(references, candidates, metrics=[name])
    np.testing.assert_allclose(
        ours.per_image[name], plain_cider(references, candidates, clipped=clipped), atol=1e-12
    )
    assert list(ours.corpus) == [name]


def test_cider_and_cider_d_differ_where_words_repeat() -> None:
    references = [[["a", "red", "dog"]], [["two", "men", "run"]], [["snow", "falls"]]]
    candidates = [["a", "red", "dog", "red", "dog", "red", "dog"], ["two", "men", "run"], ["snow", "falls"]]
    scores = score(references, candidates).per_image
    assert scores["CIDEr-D"][0] < scores["CIDEr"][0] / 2
    # a caption equal to its only reference has cosine 1 at each length it is long enough for
    assert scores["CIDEr"][1] == pytest.approx(10 * 3 / 4)
    assert scores["CIDEr-D"][2] == pytest.approx(10 * 2 / 4)


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_cider_is_never_below_cider_d(seed: int) -> None:
    """Clipping and the length penalty only lower a score."""
    per_image = score(*corpus(seed)).per_image
    assert (per_image["CIDEr"] >= per_image["CIDEr-D"] - 1e-12).all()
    assert (per_image["CIDEr"] > per_image["CIDEr-D"] + 0.01).any()


def test_cider_of_one_image_is_zero() -> None:
    assert score([[["a", "dog"], ["a", "cat"]]], [["a", "dog"]]).corpus["CIDEr-D"] == 0


def test_bleu_as_nltk_where_no_count_is_zero() -> None:
    from nltk.translate.bleu_score import corpus_bleu

    # NLTK takes a candidate shorter than an n-gram to have one n-gram: long ones only
    long = [pair for pair in zip(*corpus(11), strict=True) if len(pair[1]) >= 4]
    references, candidates = [pair[0] for pair in long], [pair[1] for pair in long]
    ours = score(references, candidates).corpus
    assert len(long) > 7
    for order in (1, 2, 3, 4):
        theirs = corpus_bleu(references, candidates, weights=[1 / order] * order)
        assert ours[f"BLEU-{order}"] == pytest.approx(theirs, abs=1e-7)


def test_bleu_on_paper() -> None:
    # 5 of 6 words match ("a" twice, as often as one reference has it); 3 of 5 pairs do; lengths 6 and 7
    texts = ["a dog runs on a red mat", "some other text of a different length"]
    scores = score([[text.split() for text in texts]], [["a", "dog", "sits", "on", "a", "red"]]).corpus
    brevity = math.exp(1 - 7 / 6)
    assert scores["BLEU-1"] == pytest.approx(5 / 6 * brevity)
    assert scores["BLEU-2"] == pytest.approx(math.sqrt(5 / 6 * 3 / 5) * brevity)


def test_corpus_bleu_is_not_the_mean_and_comes_from_sums() -> None:
    references, candidates = corpus(13)
    scores = score(references, candidates)
    assert abs(scores.corpus["BLEU-4"] - scores.per_image["BLEU-4"].mean()) > 0.01
    statistics = scores.statistics["BLEU-1"].values
    assert statistics is scores.statistics["BLEU-4"].values
    drawn = np.random.default_rng(17).integers(0, len(candidates), size=(5, len(candidates)))
    resampled = bleu(statistics[drawn].sum(axis=1))  # (5, 4)
    for row, chosen in enumerate(drawn):
        again = score([references[i] for i in chosen], [candidates[i] for i in chosen])
        np.testing.assert_allclose(resampled[row], [again.corpus[name] for name in NAMES[:4]], atol=1e-12)


def test_rouge_takes_best_precision_and_best_recall_separately() -> None:
    # precision 2/2 from the long reference, recall 1/1 from the short one: no single reference gives both
    assert score([[["a", "x", "dog", "y"], ["dog"]]], [["a", "dog"]]).corpus["ROUGE-L"] == pytest.approx(1)


def test_longest_common_subsequence_as_by_the_table() -> None:
    draw = random.Random(19)
    for size in (0, 1, 3, 13, 71, 131):  # beyond 64 too
        a, b = draw.choices(WORDS, k=size), draw.choices(WORDS, k=size + draw.randint(0, 7))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert longest_common_subsequence(a, b) == longest_common_subsequence(b, a) == table[-1][-1]


def test_counts_as_counted_by_hand() -> None:
    sequences = [["a", "b", "a", "b"], [], ["b"], ["a", "b", "c", "a", "b"]]
    counts = count_ngrams(sequences)
    words = list(counts.words)
    found: dict[tuple[int, tuple[str, ...]], int] = {}
    spelled: list[tuple[str, ...]] = [(word,) for word in words]
    for size, order in enumerate(counts.orders, 1):
        if size > 1:
            spelled = [(*spelled[key >> 32], words[key & (2**32 - 1)]) for key in order.keys]
        entries = zip(order.sequence, order.ngram, order.counts, strict=True)
        found |= {(int(s), spelled[g]): int(times) for s, g, times in entries}
    expected = Counter(
        (number, tuple(tokens[i : i + size]))
        for number, tokens in enumerate(sequences)
        for size in (1, 2, 3, 4)
        for i in range(len(tokens) - size + 1)
    )
    assert found == expected


def test_saved_document_frequencies(tmp_path: Path) -> None:
    training, _ = corpus(23, images=31)
    references, candidates = corpus(29, images=7)
    frequencies = DocumentFrequencies.of(ReferenceCounts(training))
    frequencies.save(tmp_path / "frequencies.npz")
    opened = DocumentFrequencies.open(tmp_path / "frequencies.npz")
    assert opened.fingerprint() == frequencies.fingerprint()
    other = score(references, candidates, metrics=["CIDEr-D"], frequencies=opened).per_image["CIDEr-D"]
    # the same images at the end of the training corpus, scored by the plain version with its frequencies
    own = DocumentFrequencies.of(ReferenceCounts(references))
    assert own.fingerprint() != opened.fingerprint()
    assert np.abs(other - score(references, candidates).per_image["CIDEr-D"]).max() > 0.01
    whole = DocumentFrequencies.of(ReferenceCounts([*training, *references]))
    together = plain_cider([*training, *references], [*(t[0] for t in training), *candidates], clipped=True)
    alone = score(references, candidates, metrics=["CIDEr-D"], frequencies=whole).per_image["CIDEr-D"]
    np.testing.assert_allclose(alone, together[len(training) :], atol=1e-12)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not a zip at all"])
def test_broken_document_frequencies_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"f\.npz"):
        DocumentFrequencies.open(tmp_path / "f.npz")


def test_document_frequencies_with_python_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", words=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="not a table"):
        DocumentFrequencies.open(tmp_path / "f.npz")


def test_candidates_of_nothing_known() -> None:
    scores = score([[["a", "dog"]], [["two", "cats"]]], [["x", "y", "z"], []])
    assert all(value < 1e-3 for value in scores.corpus.values())
    assert all(np.isfinite(values).all() for values in scores.per_image.values())


@pytest.mark.parametrize(
    ("references", "candidates", "names", "message"),
    [
        ([], [], NAMES, "no images"),
        ([[["a"]], []], [["a"], ["a"]], NAMES, "number 1 has no reference"),
        ([[["a"]]], [["a"], ["b"]], NAMES, "2 candidates for 1"),
        ([[["a"]]], ["a dog"], NAMES, "sequence of tokens"),
        ([[["a"]]], [["a"]], ["BLEU"], "unknown metric 'BLEU'"),
    ],
)
def test_wrong_arguments(references: Any, candidates: Any, names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(references, candidates, metrics=names)
