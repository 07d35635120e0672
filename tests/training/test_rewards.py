"""Rewards on ids beside pycocoevalcap, NLTK and slow Python, on references of many lengths and numbers."""

from collections import defaultdict

import numpy as np
import pytest

from captioning.errors import UserError
from captioning.training import rewards
from captioning.training.rewards import References
from tests.helpers.rewards import END, IMAGES, WORDS, B, K, drawn, encoded, slow_cider


def scored(references, images, captions):
    lengths = np.array([[len(caption) for caption in own] for own in captions])
    words = np.zeros((*lengths.shape, lengths.max()), np.int64)
    for b, own in enumerate(captions):
        for k, caption in enumerate(own):
            words[b, k, : len(caption)] = caption
    return References(encoded(references), vocabulary_size=WORDS).score(np.asarray(images), words, lengths)


@pytest.mark.parametrize("seed", range(3))
def test_cider_against_slow_python(seed):
    references, images, captions = drawn(seed)
    found = scored(references, images, captions).cider
    wanted = [[slow_cider(references, i, c) for c in own] for i, own in zip(images, captions, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
    assert (
        found.max() > 1 and found[:, 0].mean() > 2 * found[:, 1:].mean()
    )  # nearly right ones are worth more


def test_cider_against_pycocoevalcap():
    scorer = pytest.importorskip("pycocoevalcap.cider.cider_scorer").CiderScorer
    references, images, captions = drawn(7)

    def texts(own):
        return [" ".join(map(str, caption)) for caption in own]

    class AsMany(list):  # the scorer takes the logarithm of how many images it was given
        def __len__(self):
            return IMAGES

    split, theirs = scorer(), scorer()
    for own in references:
        split.cook_append("none", texts(own))
    split.compute_doc_freq()
    theirs.document_frequency, theirs.crefs = defaultdict(float, split.document_frequency), AsMany()
    for image, own in zip(images, captions, strict=True):
        for text in texts(own):
            theirs.cook_append(text, texts(references[image]))
    wanted = np.array(theirs.compute_cider()).reshape(B, K)
    np.testing.assert_allclose(scored(references, images, captions).cider, wanted, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_bleu_against_nltk(seed):
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    references, images, captions = drawn(seed)
    smoothing = bleu.SmoothingFunction().method2  # Lin and Och 2004
    wanted = [
        [bleu.sentence_bleu(references[i], caption, smoothing_function=smoothing) for caption in own]
        for i, own in zip(images, captions, strict=True)
    ]
    np.testing.assert_allclose(scored(references, images, captions).bleu, wanted, atol=1e-12)
    assert 0 < np.min(wanted) + np.max(wanted) < 2


def test_a_caption_that_does_not_end_is_worth_less():
    """The same words without <end>; "4 5 3" breaks off where every reference goes on."""
    references = [[[4, 5, 3, 6, END], [4, 5, 3, 7, 8, END]], [[9, 10, 3, 6, END]], [[4, 11, END]]]
    whole = scored(references, [0], [[[4, 5, 3, 6, END], [4, 5, 3, 6], [4, 5, 3]]])
    for rewards_ in whole:
        ended, unfinished, broken = rewards_[0]
        assert ended > unfinished > broken


def test_rewards_depend_on_the_image_and_not_on_the_batch():
    references, images, captions = drawn(3)
    together = scored(references, images, captions)
    for b, image in enumerate(images):
        for one, all_of_them in zip(scored(references, [image], captions[b : b + 1]), together, strict=True):
            np.testing.assert_array_equal(one[0], all_of_them[b])
    other = scored(references, np.roll(images, 1), captions)
    assert abs(other.cider - together.cider).max() > 0.1


def test_references_counted_in_parts_are_counted_the_same(monkeypatch):
    references, images, captions = drawn(4)
    whole = scored(references, images, captions)
    monkeypatch.setattr(rewards, "_CAPTIONS_PER_CHUNK", 7)
    for one, other in zip(scored(references, images, captions), whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_vocabulary_too_large_for_the_keys_is_refused():
    captions = encoded([[[4, END]]])
    References(captions, vocabulary_size=50_000)
    with pytest.raises(UserError, match=r"55,10\d words, the vocabulary has 60,000; raise vocabulary"):
        References(captions, vocabulary_size=60_000)
