"""Diverse beam search and stochastic beam search: against plain ones, exhaustive search, exact probabilities."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.generation import BeamConfig, DiverseBeamConfig, StochasticBeamConfig
from captioning.generation.sampling import blocks
from captioning.generation.stochastic_beam import condition_on_max
from captioning.tensors import Features
from tests.helpers.searching import (
    END,
    FEW,
    VOCABULARY,
    all_captions,
    assert_same,
    captions,
    chi_square,
    ends,
    make,
    next_logprobs,
    one,
    renormalised,
    run,
    scene,
    scored,
)

a_few_decoders = pytest.mark.parametrize("name", FEW)


def plain_diverse_beam(decoder, features, config):
    """Algorithm 1 of Vijayakumar et al. 2018 on lists, one image: the ended and the live of each group."""
    width, by = config.width // config.groups, (config.length_rule, config.alpha)
    live, ended = [[((), 0.0)] for _ in range(config.groups)], [[] for _ in range(config.groups)]
    for length in range(1, config.max_length + 1):
        said = Counter()
        for group in range(config.groups):
            ways = []
            for words, total in live[group]:
                for word, logprob in next_logprobs(decoder, features, words).items():
                    if word != END or length > config.min_length:
                        chosen_by = total + logprob - config.diversity * said[word]
                        ways.append(((*words, word), total + logprob, chosen_by))
            ways.sort(key=lambda way: -way[2])
            ended[group] += [way for way in ways[:width] if way[0][-1] == END]
            live[group] = [way[:2] for way in ways if way[0][-1] != END][:width]
            said.update(way[0][-1] for way in ways[:width])
            kept = sorted(scored(way[1], len(way[0]), *by) for way in ended[group])[-width:]
            hope = max((scored(logprob, config.max_length, *by) for _, logprob in live[group]), default=0)
            if len(kept) == width and hope <= kept[0] and length < config.max_length:
                live[group] = []  # nothing better can come, and a group that is done keeps no other off
    return ended, live


@a_few_decoders
@settings(max_examples=8, deadline=None)
@given(
    width=st.integers(1, 3),
    groups=st.integers(1, 4),
    diversity=st.sampled_from([0.0, 0.3, 2.0]),
    high=st.integers(1, 6),
    rule=st.sampled_from(["sum", "mean", "gnmt"]),
    seed=st.integers(0, 99),
    end=ends,
)
def test_diverse_beam_is_the_plain_one(name, width, groups, diversity, high, rule, seed, end):
    decoder, features = make(name, seed=seed, end=end), scene(2, seed=seed)
    config = DiverseBeamConfig(
        width=width * groups,
        groups=groups,
        diversity=diversity,
        n_best=width * groups,
        max_length=high,
        length_rule=rule,
        patience=None,
    )
    found = run(decoder, features, config)
    for image in range(2):
        expected = {}
        for ended, live in zip(*plain_diverse_beam(decoder, one(features, image), config), strict=True):
            ranked = [
                sorted(
                    [(way[0], finished, scored(way[1], len(way[0]), rule, config.alpha)) for way in ways],
                    key=lambda caption: -caption[2],
                )
                for ways, finished in ((ended, True), (live, False))
            ]
            for caption in [*ranked[0], *ranked[1]][:width]:
                expected[caption[0]] = caption
        ordered = sorted(expected.values(), key=lambda caption: (not caption[1], -caption[2]))
        assert_same(captions(found, image), ordered)


@a_few_decoders
def test_one_group_is_a_beam_and_no_diversity_is_as_many_equal_ones(name):
    decoder, features = make(name, seed=2, end=1.0), scene(5, seed=2)
    beam = run(decoder, features, BeamConfig(width=3, n_best=3, max_length=6))
    single = DiverseBeamConfig(width=3, groups=1, n_best=3, max_length=6)
    equal = DiverseBeamConfig(width=9, groups=3, n_best=9, max_length=6, diversity=0.0)
    for config in (single, equal):
        found = run(decoder, features, config)
        for image in range(5):
            assert_same(captions(found, image), captions(beam, image))


@a_few_decoders
def test_the_best_of_each_group_come_first_and_differ(name):
    decoder, features = make(name, seed=2, end=-1e9), scene(5, seed=2)
    config = DiverseBeamConfig(width=6, groups=3, n_best=3, max_length=6, diversity=50.0, patience=None)
    found = run(decoder, features, config)
    for image in range(5):
        words = [caption for caption, *_ in captions(found, image)]
        assert len({each[0] for each in words}) == 3  # with 50 nats at stake no group repeats another's word
    beam = run(decoder, features, BeamConfig(width=6, n_best=3, max_length=6, patience=None))
    first = [{caption[0] for caption, *_ in captions(beam, image)} for image in range(5)]
    assert sum(map(len, first)) < 15


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
