"""Stochastic beam search samples without replacement, with the model's probabilities."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

from captioning.generation import StochasticBeamConfig
from captioning.generation.sampling import blocks
from captioning.generation.stochastic_beam import condition_on_max
from captioning.tensors import Features
from tests.helpers.searching import (
    FEW,
    VOCABULARY,
    all_captions,
    captions,
    chi_square,
    make,
    renormalised,
    run,
    scene,
)

a_few_decoders = pytest.mark.parametrize("name", FEW)


@a_few_decoders
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_stochastic_beam_draws_without_replacement(name, temperature):
    decoder, features = make(name, vocabulary=6, seed=5, end=0.5), scene(1, seed=5)
    single = all_captions(
        decoder,
        features,
        3,
        lambda words, logprob: renormalised({word: value / temperature for word, value in logprob.items()}),
    )
    pairs = Counter()
    for (first, share), (second, other) in itertools.permutations(single.items(), 2):
        pairs[frozenset((first, second))] += share * other / (1 - share)
    assert sum(pairs.values()) == pytest.approx(1)
    config = StochasticBeamConfig(samples=2, max_length=3, min_length=0, seed=11, temperature=temperature)
    found = run(decoder, Features(features.regions.expand(3000, -1, -1)), config)
    seen = Counter(frozenset(words for words, *_ in captions(found, image)) for image in range(3000))
    assert all(len(pair) == 2 for pair in seen)
    assert chi_square(seen, pairs) > 1e-4
    # how often each caption is in the sample
    inclusion = {words: sum(share for pair, share in pairs.items() if words in pair) for words in single}
    for words, share in inclusion.items():
        count = sum(words in pair for pair in seen.elements())
        assert abs(count - 3000 * share) < 5 * (3000 * share * (1 - share)) ** 0.5 + 1


@a_few_decoders
def test_a_stochastic_beam_of_one_is_a_sample(name):
    decoder, features = make(name, vocabulary=6, seed=5, end=0.5), scene(1, seed=5)
    single = all_captions(decoder, features, 3, lambda words, logprob: renormalised(logprob))
    config = StochasticBeamConfig(samples=1, max_length=3, min_length=0)
    found = run(decoder, Features(features.regions.expand(3000, -1, -1)), config)
    seen = Counter(words for image in range(3000) for words, *_ in captions(found, image))
    assert chi_square(seen, single) > 1e-4


@a_few_decoders
def test_stochastic_samples_are_distinct_and_change_with_seed_and_key(name):
    decoder, features = make(name, seed=1), scene(7, seed=1)
    config = StochasticBeamConfig(samples=11, max_length=6)
    found = run(decoder, features, config)
    for image in range(7):
        listed = [words for words, *_ in captions(found, image)]
        assert len(set(listed)) == len(listed) == 11
    again = run(
        decoder, features, config, keys=torch.arange(7)
    )  # the keys that are taken where none are given
    assert torch.equal(again.ids, found.ids)
    for other in (
        run(decoder, features, replace(config, seed=1)),
        run(decoder, features, config, keys=torch.arange(1, 8)),
    ):
        assert not torch.equal(other.ids, found.ids)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9, 10, VOCABULARY, 9491])
def test_blocks_hold_every_word_once(size):
    scores = torch.arange(size).double().expand(2, 3, -1)
    split = blocks(scores)
    assert split.shape[2] * split.shape[3] >= size and split.shape[2] <= split.shape[3] <= size**0.5 + 1
    assert torch.equal(split.flatten(2)[..., :size], scores)
    assert torch.isneginf(split.flatten(2)[..., size:]).all()


def test_perturbed_children_have_their_parent_s_as_the_largest():
    generator = torch.Generator().manual_seed(0)
    fresh = torch.randn(5, 7, generator=generator, dtype=torch.float64) * 3
    fresh[0, 3] = -torch.inf
    top = torch.randn(5, generator=generator, dtype=torch.float64)
    found = condition_on_max(top, fresh)
    torch.testing.assert_close(found.amax(-1), top)
    assert torch.equal(found.argsort(-1), fresh.argsort(-1)) and torch.isneginf(found[0, 3])
    # eq. 21 of Kool et al. as it stands, before it is made stable
    plain = -torch.log(
        torch.exp(-top[:, None]) - torch.exp(-fresh.amax(-1, keepdim=True)) + torch.exp(-fresh)
    )
    torch.testing.assert_close(found, plain)
    assert torch.isneginf(condition_on_max(torch.full((5,), -torch.inf).double(), fresh)).all()
    assert torch.isneginf(condition_on_max(top, torch.full_like(fresh, -torch.inf))).all()
