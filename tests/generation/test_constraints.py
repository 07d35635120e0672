"""Forced words and phrases: dynamic beam allocation and phrase progress against plain implementations."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.generation import (
    BeamConfig,
    ConstraintIds,
    GreedyConfig,
)
from captioning.generation.automata import phrase_of_ids
from captioning.generation.constraints import PhraseConstraints, phrase_progress
from tests.helpers.searching import (
    END,
    FEW,
    assert_same,
    captions,
    make,
    next_logprobs,
    one,
    run,
    scene,
)

a_few_decoders = pytest.mark.parametrize("name", FEW)


def plain_constrained_beam(decoder, features, config, ids):
    """Dynamic beam allocation on lists: one image, prefixes read anew; phrases that share no words."""
    total = sum(map(len, ids.forced))
    last = config.max_length - 1

    def said(words):
        """Words of phrases that are said, and words still open, whole phrases."""
        met = [any(words[at : at + len(p)] == p for at in range(len(words))) for p in ids.forced]
        begun = max(
            [
                count
                for phrase, there in zip(ids.forced, met, strict=True)
                if not there
                for count in range(len(phrase))
                if words[len(words) - count :] == phrase[:count]
            ],
            default=0,
        )
        still = sum(len(phrase) for phrase, there in zip(ids.forced, met, strict=True) if not there)
        return total - still + begun, still

    live, ended = [((), 0.0)], []
    for length in range(1, config.max_length + 1):
        ways = []
        for words, logprob in live:
            still = said(words)[1]
            for word, value in next_logprobs(decoder, features, words).items():
                if word == END and (still or len(words) < config.min_length):
                    continue
                way = (*words, word)
                if still and word != END and total - said(way)[0] > last - length:
                    continue  # no room behind it
                ways.append((way, logprob + value))
        ways.sort(key=lambda way: -way[1])
        places = Counter()
        ranked = []
        for way, logprob in ways:
            bank = said(way[:-1] if way[-1] == END else way)[0]
            places[bank] += 1
            ranked.append((places[bank], -bank, way, logprob))
        ranked.sort(key=lambda each: each[:2])
        ended += [(way, logprob) for _, _, way, logprob in ranked[: config.width] if way[-1] == END]
        live = [(way, logprob) for _, _, way, logprob in ranked if way[-1] != END][: config.width]

    def listed(ways, finished):
        found = [(way, finished, logprob / len(way)) for way, logprob in ways]
        return sorted(found, key=lambda caption: -caption[2])

    return (listed(ended, True) + listed(live, False))[: config.n_best]


@a_few_decoders
@settings(max_examples=6, deadline=None)
@given(
    width=st.integers(1, 6),
    forced=st.sampled_from([((4,),), ((4,), (5, 6)), ((4, 5, 6),), ((7, 7), (4, 5))]),
    room=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_constrained_beam_is_the_plain_one_in_banks(name, width, forced, room, seed):
    decoder, features = make(name, vocabulary=9, seed=seed, end=1.0), scene(2, seed=seed)
    ids = ConstraintIds(forced=forced)
    config = BeamConfig(width=width, n_best=width, max_length=sum(map(len, forced)) + room, patience=None)
    found = run(decoder, features, config, constraints=ids)
    for image in range(2):
        assert_same(
            captions(found, image), plain_constrained_beam(decoder, one(features, image), config, ids)
        )


@a_few_decoders
def test_forced_words_cost_a_beam_less_than_greedy(name):
    """What the banks are for: the words come where they fit, not where room runs out."""
    decoder, features = make(name, seed=7, end=1.0), scene(11, seed=7)
    ids = ConstraintIds(forced=((8,), (5, 9)))
    beam = run(decoder, features, BeamConfig(width=8, max_length=9, length_rule="sum"), constraints=ids)
    greedy = run(decoder, features, GreedyConfig(max_length=9), constraints=ids)
    assert beam.finished.float().mean() >= greedy.finished.float().mean()
    assert (beam.logprob > greedy.logprob).float().mean() > 0.8


@settings(max_examples=80, deadline=None)
@given(
    words=st.lists(st.integers(4, 6), max_size=8),
    phrases=st.lists(st.lists(st.integers(4, 6), min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_progress_is_what_a_search_through_the_text_says(words, phrases):
    automata = [phrase_of_ids(phrase, 7) for phrase in phrases]
    forced = PhraseConstraints.build(automata, max_tokens=99, end=END, device=torch.device("cpu"))
    state = phrase_progress(torch.tensor([[words]], dtype=torch.int64), forced)
    lacking, furthest = 0, 0
    for place, phrase in enumerate(phrases):
        there = any(words[at : at + len(phrase)] == phrase for at in range(len(words)))
        begun = max(
            count
            for count in range(len(phrase))
            if count <= len(words) and words[len(words) - count :] == phrase[:count]
        )
        assert state.met[0, 0, place] == there
        if not there:
            assert state.matched[0, 0, place] == begun and state.next[0, 0, place] == phrase[begun]
            lacking, furthest = lacking + len(phrase), max(furthest, begun)
    assert state.open[0, 0] == lacking and state.missing()[0, 0] == lacking - furthest
