"""Diverse beam search against a plain implementation on lists."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.generation import BeamConfig, DiverseBeamConfig
from tests.helpers.searching import (
    END,
    FEW,
    assert_same,
    captions,
    ends,
    make,
    next_logprobs,
    one,
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
            said.update(words[-1] for words, _ in live[group])
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


@pytest.mark.parametrize(("factor", "wanted"), [(10, "AC"), (2, "A"), (1.1, "A")])
def test_words_of_hypotheses_that_go_on_are_penalised(factor, wanted):
    """On paper: two groups of two choose one word, with p(<end>) = .4, A .25, B .15, C .11, D .09.

    The first ends with <end>, its best, and goes on with A and B, whose shares the second group divides by `factor`.
    The second ends with <end> too, at no cost, and goes on with C and D if A falls to .025, or else with A and another.
    Of each group <end> and the better of the two that go on are returned.
    """
    decoder, words = make("toy"), {END: 0.4, 4: 0.25, 5: 0.15, 6: 0.11, 7: 0.09}
    decoder.output_weight.data.zero_()
    decoder.bias.data.fill_(-1e9)
    for word, share in words.items():
        decoder.bias.data[word] = math.log(share)
    config = DiverseBeamConfig(
        width=4, groups=2, n_best=4, diversity=math.log(factor), max_length=1, min_length=0, length_rule="sum"
    )
    expected = [((END,), True, math.log(0.4))]
    expected += [((word,), False, math.log(words[word])) for word in (4, 6) if "ABC"[word - 4] in wanted]
    assert_same(captions(run(decoder, scene(1), config), 0), expected)


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
