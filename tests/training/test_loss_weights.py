"""Weights of captions and words against slow Python."""

import numpy as np
import pytest

from captioning.text.vocabulary import Vocabulary
from captioning.training import TrainingConfig
from captioning.training.config import ConsensusConfig, EffectiveNumberConfig, FrequencyConfig
from captioning.training.loss_weights import compute_loss_weights, consensus
from tests.helpers.rewards import WORDS, drawn, encoded, slow_cider

NAMES = Vocabulary(words=("<pad>", "<start>", "<end>", "<unk>", *(f"w{n}" for n in range(WORDS - 4))))


def test_consensus_against_slow_python():
    references, _, _ = drawn()
    references[3] = [[5, 6, 7, 2]]  # alone
    found = consensus(encoded(references), vocabulary_size=WORDS)
    raw = [
        [
            slow_cider(references, image, caption, among=[*own[:k], *own[k + 1 :]]) if len(own) > 1 else None
            for k, caption in enumerate(own)
        ]
        for image, own in enumerate(references)
    ]
    flat = [score for own in raw for score in own]
    mean = np.mean([score for score in flat if score is not None])
    assert found == pytest.approx([1.0 if score is None else score / mean for score in flat], abs=1e-9)
    assert np.std(found) > 0.2


@pytest.mark.parametrize("captions", [None, ConsensusConfig(strength=0.7)])
@pytest.mark.parametrize("words", [None, FrequencyConfig(power=0.5), EffectiveNumberConfig(beta=0.9)])
def test_weights_are_1_in_the_mean_over_tokens(captions, words):
    references, _, _ = drawn(1)
    config = TrainingConfig(caption_weights=captions, word_weights=words)
    weights = compute_loss_weights(encoded(references), NAMES, config)
    assert (weights.captions is None) == (captions is None) and (weights.words is None) == (words is None)
    tokens, number, counts = [], 0, {}
    for own in references:
        for caption in own:
            for word in caption:
                counts[word] = counts.get(word, 0) + 1
                tokens.append(
                    (1 if captions is None else weights.captions[number])
                    * (1 if words is None else weights.words[word])
                )
            number += 1
    assert np.mean(tokens) == pytest.approx(1, abs=1e-5)
    if words:  # between two words as the formula says; `<end>` is left out of it
        rare, common = (pick(range(4, WORDS), key=lambda word: counts[word]) for pick in (min, max))
        a, b = counts[rare], counts[common]
        if isinstance(words, FrequencyConfig):
            ratio = (b / a) ** 0.5
        else:
            ratio = (1 - 0.9**b) / (1 - 0.9**a)
        assert a < b
        assert weights.words[rare] / weights.words[common] == pytest.approx(ratio, rel=1e-5)


def test_the_end_token_has_the_average_weight():
    references, _, _ = drawn(2)
    weights = compute_loss_weights(
        encoded(references), NAMES, TrainingConfig(word_weights=FrequencyConfig(power=1.0))
    )
    said = np.array([word for own in references for caption in own for word in caption])
    assert weights.words[NAMES.end] == pytest.approx(1)
    assert weights.words[said[said > 3]].mean() == pytest.approx(1)
