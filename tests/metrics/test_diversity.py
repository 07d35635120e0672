"""Diversity beside pycocoevalcap, slow versions of the formulas and cases worked out on paper."""

from __future__ import annotations

import math
import random
from itertools import chain

import numpy as np
import pytest

from captioning.metrics import NAMES, DocumentFrequencies, ReferenceCounts, score
from captioning.metrics.diversity import diversity, oracle_scores

Tokens = list[str]
WORDS = ["a", "the", "man", "dog", "on", "in", "grass", "red", "ball", "runs", "with", "two", "snow"]
IMAGES, N = 17, 5


def corpus(seed: int) -> tuple[list[list[Tokens]], list[list[Tokens]]]:
    """References of 17 images, and N captions each: copies, near copies, empty and repetitive ones among them."""
    draw = random.Random(seed)
    references = [[draw.choices(WORDS, k=draw.randint(2, 13)) for _ in range(3)] for _ in range(IMAGES)]
    captions = []
    for own in references:
        base = draw.choice(own)
        near = [word if draw.random() < 0.7 else draw.choice([*WORDS, "unseen"]) for word in base]
        captions.append([base, near, draw.choices(WORDS, k=7), ["a", "dog"] * 3, draw.choice([[], base])])
        draw.shuffle(captions[-1])
    return references, captions


def frequencies(references: list[list[Tokens]]) -> DocumentFrequencies:
    return DocumentFrequencies.of(ReferenceCounts(references))


def grams(tokens: Tokens, n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


@pytest.mark.parametrize("seed", [2, 3])
def test_distinct_as_counted_by_hand(seed: int) -> None:
    references, captions = corpus(seed)
    found = diversity(captions, frequencies(references)).distinct
    for row, n in enumerate((1, 2)):
        for image, own in enumerate(captions):
            kinds = {gram for tokens in own for gram in grams(tokens, n)}
            assert found[row, image] == pytest.approx(len(kinds) / sum(map(len, own)))


@pytest.mark.parametrize("seed", [5, 7])
def test_mbleu_as_by_pycocoevalcap(seed: int) -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    references, captions = corpus(seed)
    texts = [[" ".join(tokens) for tokens in own] for own in captions]
    each = []
    for at in range(N):
        others = {i: own[:at] + own[at + 1 :] for i, own in enumerate(texts)}
        each.append(
            bleu.Bleu(4).compute_score(others, {i: [own[at]] for i, own in enumerate(texts)}, verbose=0)[0]
        )
    np.testing.assert_allclose(
        diversity(captions, frequencies(references)).mbleu, np.mean(each, 0), atol=1e-12
    )


@pytest.mark.parametrize("seed", [11, 13])
def test_self_cider_as_written_in_the_paper(seed: int) -> None:
    """The eigenvalues of CIDEr / 10 of each two captions, by CIDEr's own function, pair by pair."""
    references, captions = corpus(seed)
    table = frequencies(references)
    found = diversity(captions, table).self_cider
    assert found.shape == (IMAGES,)
    pairs = [(own[i], own[j]) for own in captions for i in range(N) for j in range(N)]
    one_by_one = score([[b] for _, b in pairs], [a for a, _ in pairs], metrics=["CIDEr"], frequencies=table)
    kernels = one_by_one.per_image["CIDEr"].reshape(IMAGES, N, N) / 10
    for image, kernel in enumerate(kernels):
        assert kernel == pytest.approx(kernel.T)
        values = [math.sqrt(max(value, 0)) for value in np.linalg.eigvals(kernel).real]
        expected = -math.log(max(values) / sum(values)) / math.log(N)
        assert found[image] == pytest.approx(expected, abs=1e-6)


def test_on_paper() -> None:
    same, apart = ["a", "red", "dog", "runs"], ["two", "men", "in", "snow"]
    references = [[same], [apart], [["some", "other", "words", "here"]]]
    captions = [[same, same], [same, apart], [["x", "y", "z", "x"], ["x", "y", "z", "w"]]]
    found = diversity(captions, frequencies(references))
    assert found.distinct.tolist() == [[4 / 8, 8 / 8, 4 / 8], [3 / 8, 6 / 8, 4 / 8]]
    assert found.self_cider[0] == pytest.approx(0, abs=1e-6)  # all the same
    assert found.self_cider[1] == pytest.approx(1)  # nothing in common
    # all words weigh log 3: cosines of (2,1,1,0), (1,1,1,1); (1,1,1,0), (1,1,0,1); 1/2; 0; their mean is c
    c = (4 / math.sqrt(6 * 4) + 2 / 3 + 1 / 2 + 0) / 4
    share = math.sqrt(1 + c) / (math.sqrt(1 + c) + math.sqrt(1 - c))
    assert found.self_cider[2] == pytest.approx(-math.log2(share))
    # of 6 x 4 n-grams of one length: all of the first image's, none of the second's; and 3 of 4, 2 of 3, 1 of 2, 0 of 1
    precisions = [(8 + 3 * 2) / 24, (6 + 2 * 2) / 18, (4 + 1 * 2) / 12, 2 / 6]
    assert found.mbleu[3] == pytest.approx(math.prod(precisions) ** (1 / 4))


def test_nothing_but_empty_captions() -> None:
    found = diversity([[[], []], [[], []]], frequencies([[["a"]], [["b"]]]))
    assert found.distinct.tolist() == [[0, 0], [0, 0]] and found.self_cider.tolist() == [0, 0]
    assert found.mbleu.max() < 1e-3


def test_oracle_is_the_best_of_all_choices() -> None:
    references, captions = corpus(17)
    table = frequencies(references)
    best = oracle_scores(ReferenceCounts(references), captions, metrics=NAMES, frequencies=table)
    flat = list(chain.from_iterable(captions))
    each = score([own for own in references for _ in range(N)], flat, frequencies=table)
    for name in NAMES:
        np.testing.assert_allclose(
            best.per_image[f"oracle-{name}"], each.per_image[name].reshape(IMAGES, N).max(axis=1)
        )
    for name in NAMES[4:]:
        assert best.corpus[f"oracle-{name}"] == pytest.approx(best.per_image[f"oracle-{name}"].mean())
    chosen = [
        own[int(np.argmax(s))]
        for own, s in zip(captions, each.per_image["BLEU-3"].reshape(IMAGES, N), strict=True)
    ]
    assert best.corpus["oracle-BLEU-3"] == pytest.approx(score(references, chosen).corpus["BLEU-3"])


@pytest.mark.parametrize("captions", [[], [[["a"]]], [[["a"], ["b"]], [["a"], ["b"], ["c"]]]])
def test_as_many_captions_for_each_image(captions: list[list[Tokens]]) -> None:
    with pytest.raises(ValueError, match="as many captions for each image, and two at least"):
        diversity(captions, frequencies([[["a"]]]))
