"""Beam search against exhaustive search and a plain implementation on lists, and when it stops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.generation import BeamConfig, GreedyConfig
from tests.helpers.searching import (
    CHANNELS,
    DECODERS,
    END,
    FEW,
    PAD,
    RULES,
    SUPPRESSED,
    VOCABULARY,
    assert_same,
    beams,
    captions,
    ends,
    exhaustive,
    make,
    one,
    read,
    run,
    scene,
    scored,
)
from tests.helpers.toy import Toy


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("rule", RULES)
def test_beam_of_one_is_greedy(name, rule):
    for seed, (low, high) in enumerate([(0, 7), (2, 11), (1, 5), (7, 7)]):
        decoder, features = make(name, seed=seed, end=1.0), scene(7, seed=seed)
        greedy = run(decoder, features, GreedyConfig(min_length=low, max_length=high))
        beam = run(decoder, features, BeamConfig(width=1, min_length=low, max_length=high, length_rule=rule))
        for field in ("ids", "lengths", "finished"):
            assert torch.equal(getattr(beam, field), getattr(greedy, field))
        torch.testing.assert_close(beam.word_logprobs, greedy.word_logprobs)
        torch.testing.assert_close(beam.logprob, greedy.logprob)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("low", [0, 1, 4])
def test_wide_beam_is_exhaustive_search(name, rule, low):
    decoder, features = make(name, vocabulary=7, seed=3), scene(2, seed=3)
    config = {"min_length": low, "max_length": 4, "length_rule": rule, "alpha": 0.8}
    every = BeamConfig(width=131, n_best=131, **config)  # 81 unfinished, at most 40 finished
    few = BeamConfig(width=131, n_best=3, patience=None, **config)
    all_found, few_found = run(decoder, features, every), run(decoder, features, few)
    for image in range(2):
        expected = exhaustive(decoder, one(features, image), low=low, high=4, rule=rule, alpha=0.8)
        assert_same(captions(all_found, image), expected)
        assert_same(captions(few_found, image), expected[:3])


def plain_beam(decoder, features, config):
    """The same search, one image at a time, in lists, prefixes read anew and no stopping but by patience."""
    enough = math.inf
    if config.patience is not None:
        enough = max(config.n_best, math.ceil(config.width * config.patience))
    live, ended = [((), 0.0)], []
    for length in range(1, config.max_length + 1):
        ways = []
        for words, total in live:
            logprob = read(decoder, features, torch.tensor([[words]], dtype=torch.int64))[0, 0, -1].tolist()
            for word in range(decoder.vocabulary_size):
                if word not in SUPPRESSED and (word != END or length > config.min_length):
                    ways.append(((*words, word), total + logprob[word]))
        ways.sort(key=lambda way: -way[1])
        ended += [way for way in ways[: config.width] if way[0][-1] == END]
        live = [way for way in ways if way[0][-1] != END][: config.width]
        if len(ended) >= enough:
            live = []
            break

    def hypotheses(ways, finished):
        return sorted(
            [
                (words, finished, scored(logprob, len(words), config.length_rule, config.alpha))
                for words, logprob in ways
            ],
            key=lambda caption: -caption[2],
        )

    return (hypotheses(ended, True) + hypotheses(live, False))[: config.n_best]


@pytest.mark.parametrize("name", FEW)
@settings(max_examples=10, deadline=None)
@given(config=beams, seed=st.integers(0, 99), end=ends)
def test_beam_is_the_plain_one_that_never_stops_early(name, config, seed, end):
    decoder, features = make(name, seed=seed, end=end), scene(2, seed=seed)
    found = run(decoder, features, config)
    for image in range(2):
        assert_same(captions(found, image), plain_beam(decoder, one(features, image), config))


class Counting(Toy):
    """Counts the words that it was asked for."""

    steps = 0

    def step(self, words, state, memory):
        self.steps += 1
        return super().step(words, state, memory)


@pytest.mark.parametrize(("rule", "most"), [("sum", 4), ("mean", 97)])
def test_stops_when_nothing_better_can_come(rule, most):
    decoder = Counting(channels=CHANNELS, vocabulary_size=VOCABULARY)
    decoder.bias.data[END] += 30  # all mass on <end>: -30 nats for any other word
    run(decoder, scene(3), BeamConfig(width=5, max_length=97, length_rule=rule, patience=None))
    assert decoder.steps <= most
    if rule == "mean":  # -60 nats over 97 words may yet beat 0 + -30 over 2: it must go on for long
        assert decoder.steps > 4


def test_patience_ends_the_search():
    steps = []
    for patience in (1.0, 3.0, None):
        decoder = Counting(channels=CHANNELS, vocabulary_size=VOCABULARY)
        decoder.bias.data[END] += 3
        run(decoder, scene(3), BeamConfig(width=5, max_length=97, patience=patience))
        steps.append(decoder.steps)
    assert steps[0] < steps[1] < steps[2]


def test_finished_come_before_unfinished_however_unlikely():
    decoder = make("toy", end=-4.0)
    config = BeamConfig(width=101, n_best=101, max_length=3, length_rule="sum", patience=None)
    found = run(decoder, scene(1), config)
    finished = found.finished[0].int()
    assert 0 < finished.sum() < 101 and (finished.diff() <= 0).all()
    assert found.scores[0][finished == 1].min() < found.scores[0][finished == 0].max()


@pytest.mark.parametrize("name", FEW)
def test_fewer_captions_than_asked_for_leave_empty_rows(name):
    decoder, features = make(name, vocabulary=5), scene(2)  # word 4 and <end> alone may come
    found = run(decoder, features, BeamConfig(width=11, n_best=11, max_length=3, min_length=0))
    assert found.ids.shape == (2, 11, 3)
    for image in range(2):
        assert {words for words, *_ in captions(found, image)} == {(2,), (4, 2), (4, 4, 2), (4, 4, 4)}
    assert (found.lengths[:, 4:] == 0).all() and (found.ids[:, 4:] == PAD).all()
