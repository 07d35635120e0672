"""Constraints against exhaustive search and exact probabilities."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.generation import (
    BeamConfig,
    ConstraintIds,
    DiverseBeamConfig,
    GreedyConfig,
    SampleConfig,
    StochasticBeamConfig,
)
from captioning.generation.processors import no_bad_ending, no_repeat_ngram
from captioning.tensors import Features
from tests.helpers.searching import (
    DECODERS,
    END,
    FEW,
    RULES,
    all_captions,
    allowed,
    assert_same,
    captions,
    chi_square,
    exhaustive,
    make,
    one,
    read,
    renormalised,
    run,
    scene,
)

# words 4, 5 and 6 may come
RULED = {
    "prefix": (ConstraintIds(prefix=(5, 4)), {}),
    "banned": (ConstraintIds(banned=(5,)), {}),
    "endings": (ConstraintIds(endings=(4, 6)), {}),
    "no word twice": (ConstraintIds(), {"no_repeat": 1}),
    "no pair twice": (ConstraintIds(prefix=(4,)), {"no_repeat": 2}),
    "a forced word": (ConstraintIds(forced=((6,),)), {}),
    "forced words": (ConstraintIds(forced=((6,), (4,))), {}),
    "a forced phrase": (ConstraintIds(forced=((4, 6),)), {}),
    "a phrase and a word": (ConstraintIds(forced=((4, 4), (5,))), {}),
    "a phrase behind its like": (ConstraintIds(prefix=(4,), forced=((4, 6),)), {}),
    "all": (ConstraintIds(prefix=(4,), forced=((6,),), banned=(5,), endings=(4,)), {"no_repeat": 3}),
}
ruled = pytest.mark.parametrize("rules", RULED)
a_few_decoders = pytest.mark.parametrize("name", FEW)


@a_few_decoders
@ruled
def test_wide_beams_find_all_captions_that_the_rules_allow(name, rules):
    ids, more = RULED[rules]
    decoder, features = make(name, vocabulary=7, seed=3), scene(2, seed=3)
    common = {"min_length": 1, "max_length": 4, "length_rule": "gnmt", "alpha": 0.8, **more}
    searches = (
        BeamConfig(width=131, n_best=131, **common),
        DiverseBeamConfig(width=262, groups=2, n_best=131, **common),
        StochasticBeamConfig(samples=131, **common),
    )
    few = BeamConfig(width=131, n_best=2, patience=None, **common)
    for image in range(2):
        oracle = exhaustive(
            decoder, one(features, image), low=1, high=4, rule="gnmt", alpha=0.8, ids=ids, **more
        )
        for config in searches:
            assert_same(captions(run(decoder, features, config, constraints=ids), image), oracle)
        assert_same(captions(run(decoder, features, few, constraints=ids), image), oracle[:2])


@a_few_decoders
@ruled
def test_samples_have_the_model_s_distribution_renormalised_word_by_word(name, rules):
    ids, more = RULED[rules]
    decoder, features = make(name, vocabulary=7, seed=5, end=0.5), scene(1, seed=5)

    def can_begin(words):  # some caption that the rules allow begins so; phrases need their room
        if words[-1] == END or len(words) == 4:
            return allowed(words, ids, low=1, high=4, **more)
        return any(can_begin((*words, word)) for word in (END, 4, 5, 6))

    def shares(words, logprob):
        if len(words) < len(ids.prefix):
            return {ids.prefix[len(words)]: 1.0}
        return renormalised({word: value for word, value in logprob.items() if can_begin((*words, word))})

    expected = all_captions(decoder, features, 4, shares)
    if not ids.forced:  # other rules forbid a word for what has been said, not for what it would lead to
        assert all(allowed(words, ids, low=1, high=4, **more) for words in expected)
    config = SampleConfig(samples=50, max_length=4, **more)
    found = run(decoder, Features(features.regions.expand(40, -1, -1)), config, constraints=ids)
    seen = Counter(words for image in range(40) for words, *_ in captions(found, image))
    assert seen.total() == 2000 and chi_square(seen, expected) > 1e-4


@a_few_decoders
def test_a_prefix_costs_what_reading_it_says(name):
    decoder, features = make(name, seed=1), scene(3, seed=1)
    prefix = (6, 4, 6)
    for config in (GreedyConfig(max_length=7), SampleConfig(samples=5, max_length=7)):
        found = run(decoder, features, config, constraints=ConstraintIds(prefix=prefix))
        logprob = read(decoder, features, torch.tensor([[prefix[:-1]]] * 3))[:, 0]  # (B, 3, V)
        expected = torch.stack([logprob[:, at, word] for at, word in enumerate(prefix)], -1)
        torch.testing.assert_close(
            found.word_logprobs[..., :3], expected[:, None].expand(-1, found.ids.shape[1], -1)
        )


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("rule", RULES)
def test_beam_of_one_is_greedy_under_rules(name, rule):
    for ids, more in (
        (ConstraintIds(prefix=(4,), banned=(7, 9), endings=(5, 8)), {"no_repeat": 2}),
        (None, {"no_repeat": 1}),
    ):
        decoder, features = make(name, seed=4, end=1.0), scene(7, seed=4)
        greedy = run(decoder, features, GreedyConfig(max_length=7, **more), constraints=ids)
        beam = run(
            decoder, features, BeamConfig(width=1, max_length=7, length_rule=rule, **more), constraints=ids
        )
        assert torch.equal(beam.ids, greedy.ids)
        torch.testing.assert_close(beam.word_logprobs, greedy.word_logprobs)


@settings(max_examples=80, deadline=None)
@given(
    words=st.lists(st.integers(0, 3), min_size=0, max_size=9),
    size=st.integers(1, 4),
    others=st.integers(0, 99),
)
def test_no_repeat_forbids_exactly_the_words_that_repeat(words, size, others):
    other = torch.randint(4, (1, 1, len(words)), generator=torch.Generator().manual_seed(others))
    both = torch.cat([torch.tensor([[words]], dtype=torch.int64), other], 1)  # (1, 2, t)
    scores = no_repeat_ngram(torch.zeros(1, 2, 5), both, size=size)
    for row, said in zip(scores[0], both[0].tolist(), strict=True):
        grams = [tuple(said[at : at + size]) for at in range(len(said) - size + 1)]
        for word in range(5):
            tail = tuple([*said, word][len(said) + 1 - size :]) if size <= len(said) + 1 else None
            assert (row[word] == -math.inf) == (tail in grams)


def test_no_bad_ending_on_paper():
    words = torch.tensor([[[7, 4], [4, 7], [5, 5]]])
    scores = no_bad_ending(torch.zeros(1, 3, 9), words, endings=torch.tensor([4, 5]), end=2)
    assert scores[0, :, 2].tolist() == [-math.inf, 0, -math.inf]
    assert (scores[..., [0, 1, *range(3, 9)]] == 0).all()
    nothing = no_bad_ending(torch.zeros(1, 3, 9), words[..., :0], endings=torch.tensor([4, 5]), end=2)
    assert (nothing == 0).all()
