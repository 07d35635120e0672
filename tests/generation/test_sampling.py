"""Samples occur with their exact probabilities, for every filter."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.generation import GreedyConfig, SampleConfig
from captioning.generation.sampling import filter_logits, multinomial
from captioning.ops import noise
from captioning.tensors import Features
from tests.helpers.searching import (
    FEW,
    all_captions,
    captions,
    chi_square,
    make,
    renormalised,
    run,
    scene,
)

LEAST_P = 1e-4  # seeds are fixed, so a test that passes goes on to pass; a wrong one is at 1e-20


@pytest.mark.parametrize("size", [1, 2, 7, 16, 97])
def test_draws_have_the_distribution_of_the_scores(size):
    scores = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 2
    if size > 2:
        scores[1] = -math.inf
    rows = 40_000
    drawn = multinomial(
        scores.expand(rows // 5, 5, size), noise.sequence_states(0, torch.arange(rows // 5), 5)
    )
    expected = dict(enumerate(scores.double().softmax(0).tolist()))
    seen = Counter(drawn.flatten().tolist())
    assert chi_square(seen, {word: share for word, share in expected.items() if share}) > LEAST_P


def plain_narrowed(logprob, config):
    """{word: log-probability} -> {word: share}, each definition written out."""
    share = renormalised({word: value / config.temperature for word, value in logprob.items()})

    def kept(words):
        return renormalised({word: math.log(share[word]) for word in words})

    likeliest = sorted(share, key=lambda word: -share[word])
    if config.top_k is not None:
        share = kept(likeliest[: config.top_k])

    def least(cost, mass):
        chosen, total = [], 0.0
        for word in sorted(share, key=lambda word: cost[word]):
            if total < mass:
                chosen.append(word)
                total += share[word]
        return chosen

    if config.top_p is not None:
        share = kept(least({word: -each for word, each in share.items()}, config.top_p))
    if config.typical is not None:
        bits = {word: -math.log(each) for word, each in share.items()}
        entropy = sum(share[word] * each for word, each in bits.items())
        share = kept(least({word: abs(each - entropy) for word, each in bits.items()}, config.typical))
    if config.min_p is not None:
        share = kept([word for word in share if share[word] >= config.min_p * max(share.values())])
    return share


NARROWINGS = (
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 2},
    {"top_p": 0.7},
    {"typical": 0.6},
    {"min_p": 0.3},
    {"temperature": 1.3, "top_k": 4, "top_p": 0.9, "min_p": 0.1},
)


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(2, 29),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 3, 100]),
    top_p=st.sampled_from([None, 0.01, 0.5, 0.9, 1.0]),
    typical=st.sampled_from([None, 0.01, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([None, 0.01, 0.5, 1.0]),
    seed=st.integers(0, 999),
)
def test_narrowing_keeps_the_words_that_the_definitions_say(size, seed, **chosen):
    config = SampleConfig(**chosen)
    logits = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    logits[:, :, 1:2] = -math.inf  # a word that rules have forbidden
    found = filter_logits(logits.log_softmax(-1), config).softmax(-1)
    for row, shares in zip(logits.log_softmax(-1).flatten(0, 1), found.flatten(0, 1), strict=True):
        logprob = {word: value for word, value in enumerate(row.tolist()) if word != 1}
        expected = plain_narrowed(logprob, config)
        wanted = torch.tensor([expected.get(word, 0.0) for word in range(size)], dtype=torch.float64)
        torch.testing.assert_close(shares, wanted)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("chosen", NARROWINGS, ids=str)
def test_captions_come_as_often_as_their_exact_probability(name, chosen):
    decoder, features = make(name, vocabulary=7, seed=5, end=0.5), scene(1, seed=5)
    config = SampleConfig(samples=50, max_length=3, min_length=0, seed=3, **chosen)
    expected = all_captions(decoder, features, 3, lambda words, logprob: plain_narrowed(logprob, config))
    assert sum(expected.values()) == pytest.approx(1)
    found = run(decoder, Features(features.regions.expand(60, -1, -1)), config)
    seen = Counter(words for image in range(60) for words, *_ in captions(found, image))
    assert sum(seen.values()) == 3000 and chi_square(seen, expected) > LEAST_P


@pytest.mark.parametrize("name", FEW)
def test_samples_of_an_image_are_independent(name):
    decoder, features = make(name, vocabulary=7, seed=5, end=0.5), scene(1, seed=5)
    single = all_captions(decoder, features, 2, lambda words, logprob: renormalised(logprob))
    config = SampleConfig(samples=2, max_length=2, min_length=0, seed=11)
    found = run(decoder, Features(features.regions.expand(2000, -1, -1)), config)
    seen = Counter(tuple(sorted(words for words, *_ in captions(found, image))) for image in range(2000))
    pairs = Counter()
    for first, share in single.items():
        for second, other in single.items():
            pairs[tuple(sorted((first, second)))] += share * other
    assert chi_square(seen, pairs) > LEAST_P


@pytest.mark.parametrize("name", FEW)
def test_more_samples_leave_the_first_as_they_were(name):
    decoder, features = make(name, seed=1, end=1.0), scene(5, seed=1)
    few, many = (run(decoder, features, SampleConfig(samples=count, max_length=7)) for count in (2, 5))
    for image in range(5):
        fewer = Counter(words for words, *_ in captions(few, image))
        assert fewer <= Counter(words for words, *_ in captions(many, image))


@pytest.mark.parametrize("name", FEW)
def test_another_seed_or_key_gives_other_captions(name):
    decoder, features = make(name, seed=1), scene(1, seed=1)
    config = SampleConfig(samples=3, max_length=7)
    first = run(decoder, features, config, keys=torch.tensor([5]))
    assert torch.equal(run(decoder, features, config, keys=torch.tensor([5])).ids, first.ids)
    assert not torch.equal(run(decoder, features, config, keys=torch.tensor([6])).ids, first.ids)
    other = SampleConfig(samples=3, max_length=7, seed=1)
    assert not torch.equal(run(decoder, features, other, keys=torch.tensor([5])).ids, first.ids)


@pytest.mark.parametrize("name", FEW)
def test_a_single_word_to_draw_from_is_greedy(name):
    decoder, features = make(name, seed=2, end=1.0), scene(7, seed=2)
    greedy = run(decoder, features, GreedyConfig(max_length=7))
    for chosen in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-4}):
        drawn = run(decoder, features, SampleConfig(max_length=7, length_rule="sum", **chosen))
        assert torch.equal(drawn.ids, greedy.ids)
        torch.testing.assert_close(drawn.logprob, greedy.logprob)
