"""The words of constraints as ids of a vocabulary, and the constraints that are refused."""

import pytest

from captioning.errors import UserError
from captioning.generation import (
    BeamConfig,
    ConstraintIds,
    DiverseBeamConfig,
    GreedyConfig,
    SampleConfig,
    StochasticBeamConfig,
    constraint_ids,
)
from captioning.text.vocabulary import SPECIALS, Vocabulary
from tests.helpers.models import WORDS, tiny_captioner

VOCABULARY = Vocabulary(words=(*SPECIALS, *WORDS))


IDS = VOCABULARY.ids


def test_words_of_rules_as_ids():
    config = GreedyConfig(
        prefix="The  RED, cat", forced=("a dog", "runs", "A dog!"), banned=("grass", "elephant"), max_length=7
    )
    assert constraint_ids(config, VOCABULARY) == ConstraintIds(
        prefix=(IDS["the"], IDS["red"], IDS["cat"]),
        forced=((IDS["a"], IDS["dog"]), (IDS["runs"],)),  # once, however often it is asked for
        banned=(IDS["grass"],),  # the other cannot come anyway
    )
    endings = constraint_ids(GreedyConfig(no_bad_ending=True), VOCABULARY).endings
    assert set(endings) == {IDS["a"], IDS["the"], IDS["on"]}
    assert constraint_ids(BeamConfig(), VOCABULARY) == ConstraintIds()
    # a phrase that the prefix holds takes no further room; one that it begins does
    constraint_ids(GreedyConfig(prefix="a red dog", forced=("red dog",), max_length=4), VOCABULARY)
    with pytest.raises(UserError, match=r"are 6 words, but max_length=5"):
        constraint_ids(GreedyConfig(prefix="a red", forced=("red dog runs",), max_length=5), VOCABULARY)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (GreedyConfig(forced=("elephant",)), "search.forced: 'elephant' is not among the model's 13 words"),
        (GreedyConfig(forced=("dog", "<unk>")), "search.forced: '<unk>' is not among"),
        (GreedyConfig(forced=("dog", " . ")), "search.forced: ' . ' contains no word"),
        (GreedyConfig(prefix="a Zebra runs"), "search.prefix: 'zebra' is not among the model's 13 words"),
        (GreedyConfig(prefix="..."), "search.prefix: '...' contains no word"),
        (GreedyConfig(banned=("red dog",)), "search.banned: 'red dog' is not one word"),
        (GreedyConfig(banned=("!",)), "search.banned: '!' is not one word"),
        (GreedyConfig(forced=("a dog",), banned=("DOG",)), "search.forced: 'dog' is also in search.banned"),
        (GreedyConfig(prefix="a dog", banned=("dog",)), "search.prefix: 'dog' is also in search.banned"),
        (GreedyConfig(prefix="a dog runs", max_length=3), "'a dog runs' has 3 words, but captions end at"),
        (GreedyConfig(forced=("a dog", "a cat"), max_length=4), "are 5 words, but max_length=4"),
        (BeamConfig(width=10), "search.width: a beam of 10, but the model has 9 words; lower it to 9"),
        (DiverseBeamConfig(width=12), "search.width: a beam of 12, but the model has 9 words"),
    ],
)
def test_rules_that_cannot_be_kept(config, said):
    with pytest.raises(UserError) as raised:
        constraint_ids(config, VOCABULARY)
    assert said in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(UserError):
        tiny_captioner(search=config)  # before any training


def test_as_many_beams_as_words_and_more_samples():
    for config in (BeamConfig(width=9), DiverseBeamConfig(width=9), SampleConfig(samples=99)):
        assert constraint_ids(config, VOCABULARY) == ConstraintIds()
    assert constraint_ids(StochasticBeamConfig(samples=99), VOCABULARY) == ConstraintIds()
