"""Phrases in captions of pieces of words: automata beside searches through the joined text, and searches with them."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.errors import UserError
from captioning.generation import (
    BeamConfig,
    DiverseBeamConfig,
    GreedyConfig,
    SampleConfig,
    StochasticBeamConfig,
    constraint_ids,
)
from captioning.generation.automata import phrase_of_ids, phrase_of_text, texts_of_tokens
from captioning.text.vocabulary import SPECIALS, Vocabulary
from tests.helpers.searching import END, assert_same, captions, make, one, read, run, scene, scored

# several spellings of most words: ab▁, a b▁, a b ▁
PIECES = Vocabulary((*SPECIALS, "a", "b", "▁", "b▁", "ab▁"), merges=(("b", "▁"), ("a", "b▁")))
CHARACTERS = Vocabulary(
    (*SPECIALS, "一", "只", "狗", "只狗", "一只狗"),
    tokenizer="characters",
    merges=(("只", "狗"), ("一", "只狗")),
)
TOKENS = range(len(SPECIALS), len(PIECES))
both = pytest.mark.parametrize("vocabulary", [PIECES, CHARACTERS], ids=["words", "characters"])


def joined(ids, vocabulary):
    """The text, its words between spaces; a word that is not finished has an end of "…"."""
    text = "".join(vocabulary.words[number] for number in ids)
    if vocabulary is CHARACTERS:
        return text
    unfinished = "…" if text and not text.endswith("▁") else ""
    return f" {' '.join(text.replace('▁', ' ').split())}{unfinished} "


def occurs(phrase, ids, vocabulary, *, cut=False):
    """Whether the text holds the phrase; `cut`: also as an unfinished word at its end."""
    text = joined(ids, vocabulary)
    return (phrase if vocabulary is CHARACTERS else f" {phrase} ") in (text.replace("…", "") if cut else text)


def follow(automaton, ids):
    state = automaton.start
    for token in ids:
        state = int(automaton.table[state, token])
    return state


def is_found(automaton, ids):
    return follow(automaton, ids) == len(automaton.table) - 1


@both
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_texts_are_found_where_the_joined_caption_has_them(vocabulary, data):
    letters = "ab" if vocabulary is PIECES else "一只狗"
    words = st.text(letters, min_size=1, max_size=3)
    if vocabulary is PIECES:
        words = st.lists(words, min_size=1, max_size=2).map(" ".join)
    texts = tuple(data.draw(st.lists(words, min_size=1, max_size=3)))
    ids = data.draw(st.lists(st.sampled_from(TOKENS), max_size=9))
    automaton = texts_of_tokens(texts, vocabulary)
    assert is_found(automaton, ids) == any(occurs(text, ids, vocabulary) for text in texts)
    assert is_found(automaton, [*ids, END]) == any(occurs(text, ids, vocabulary, cut=True) for text in texts)
    at_end = texts_of_tokens(texts, vocabulary, at_end=True)
    text = joined(ids, vocabulary).replace("…", "").strip()
    ends = [text == each or text.endswith(each if vocabulary is CHARACTERS else f" {each}") for each in texts]
    assert not is_found(at_end, ids) and is_found(at_end, [*ids, END]) == any(ends)


@both
@pytest.mark.parametrize("phrase", ["ab", "ab a", "bb", "狗", "一只狗", "只狗一"])
def test_remaining_tokens_beside_all_continuations(vocabulary, phrase):
    if phrase.isascii() != (vocabulary is PIECES):
        return
    automaton = phrase_of_text(phrase, vocabulary)
    for begun in itertools.chain.from_iterable(itertools.product(TOKENS, repeat=size) for size in range(4)):
        shortest = next(
            size
            for size in range(6)
            if any(
                occurs(phrase, begun + more, vocabulary) for more in itertools.product(TOKENS, repeat=size)
            )
        )
        state = follow(automaton, begun)
        assert automaton.remaining[state] == shortest
        assert shortest == 0 or automaton.next_ids[state] in TOKENS


def test_the_usual_spelling_is_preferred():
    """To one of the same length that the training captions never have."""
    vocabulary = Vocabulary((*SPECIALS, "a", "b", "▁", "b▁", "ab"), merges=(("a", "b"), ("b", "▁")))
    usual = [vocabulary.ids[token] for token in vocabulary.tokenize("ab bab")]
    automaton = phrase_of_text("ab bab", vocabulary)
    states = [follow(automaton, usual[:size]) for size in range(len(usual))]
    assert automaton.next_ids[states].tolist() == usual


def test_a_phrase_of_ids_on_paper():
    automaton = phrase_of_ids([4, 4, 5], 7)
    assert automaton.table[:, 4].tolist() == [1, 2, 2, 3] and automaton.table[:, 5].tolist() == [0, 0, 3, 3]
    assert automaton.table[:, 6].tolist() == [0, 0, 0, 3] and automaton.remaining.tolist() == [3, 2, 1, 0]


def allowed(ids, config, vocabulary, high):
    """Whether the caption satisfies the constraints of `config`, read in its text."""
    said = ids[:-1] if ids[-1] == END else ids
    prefix = [vocabulary.ids[token] for token in vocabulary.tokenize(config.prefix)]
    endings = ("a",) if config.no_bad_ending and vocabulary is PIECES else ()
    last = joined(said, vocabulary).replace("…", "").split()[-1:]
    return (
        (ids[-1] != END or len(said) >= config.min_length)
        and list(said[: len(prefix)]) == prefix
        and not any(occurs(text, said, vocabulary, cut=True) for text in config.banned)
        and all(occurs(text, said[: high - 1], vocabulary) for text in config.forced)
        and not (last and last[0] in endings)
    )


RULES = {
    "a forced word": (PIECES, {"forced": ("ab",)}),
    "a forced phrase": (PIECES, {"forced": ("a b",)}),
    "a banned word": (PIECES, {"banned": ("ab",)}),
    "banned words": (PIECES, {"banned": ("a", "bb")}),
    "forced and banned": (PIECES, {"forced": ("b",), "banned": ("ab", "bb")}),
    "a prefix": (PIECES, {"prefix": "ab", "banned": ("a",)}),
    "endings": (PIECES, {"no_bad_ending": True}),
    "forced characters": (CHARACTERS, {"forced": ("狗一",)}),
    "banned characters": (CHARACTERS, {"banned": ("只狗", "一一")}),
}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", ["toy", "transformer"])
def test_wide_beams_find_all_captions_that_the_text_s_rules_allow(name, rules):
    vocabulary, options = RULES[rules]
    high = 4
    decoder, features = make(name, vocabulary=len(vocabulary), seed=3), scene(2, seed=3)
    common = {"max_length": high, "length_rule": "mean", **options}
    config = BeamConfig(width=5, **common)
    found = [(*words, END) for size in range(1, high) for words in itertools.product(TOKENS, repeat=size)]
    found += itertools.product(TOKENS, repeat=high)
    found = [words for words in found if allowed(words, config, vocabulary, high)]
    ids = constraint_ids(config, vocabulary)
    padded = torch.tensor([[(*words, *[0] * (high - len(words))) for words in found]])
    for image in range(2):
        logprob = read(decoder, one(features, image), padded[..., :-1]).gather(-1, padded[..., None])[
            0, ..., 0
        ]
        oracle = [
            (tuple(words), words[-1] == END, scored(row[: len(words)].sum().item(), len(words), "mean", 0))
            for words, row in zip(found, logprob, strict=True)
        ]
        oracle.sort(key=lambda caption: (not caption[1], -caption[2]))
        width = max(len(found), 2 * len(TOKENS) ** (high - 1))
        beam = BeamConfig(width=width, n_best=len(found), **common)
        assert_same(captions(run(decoder, features, beam, constraints=ids), image), oracle)


MORE_RULES = RULES | {"forced characters that repeat": (CHARACTERS, {"forced": ("一一一",), "no_repeat": 2})}


@pytest.mark.parametrize("rules", MORE_RULES)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 999), high=st.integers(4, 9), width=st.integers(1, 3))
def test_every_search_keeps_the_text_s_rules(rules, seed, high, width):
    vocabulary, options = MORE_RULES[rules]
    decoder, features = make("toy", vocabulary=len(vocabulary), seed=seed), scene(3, seed=seed)
    for config in (
        GreedyConfig(max_length=high, **options),
        BeamConfig(width=width, n_best=width, max_length=high, **options),
        DiverseBeamConfig(width=4, groups=2, max_length=high, **options),
        SampleConfig(samples=width, max_length=high, seed=seed, **options),
        StochasticBeamConfig(samples=width, max_length=high, seed=seed, **options),
    ):
        found = run(decoder, features, config, constraints=constraint_ids(config, vocabulary))
        for image in range(3):
            own = captions(found, image)
            assert own and all(allowed(words, config, vocabulary, high) for words, *_ in own)


@pytest.mark.parametrize(
    ("vocabulary", "config", "message"),
    [
        (PIECES, GreedyConfig(forced=("ax",)), "search.forced: 'ax' is not among the model's 9 pieces"),
        (PIECES, GreedyConfig(banned=("a b",)), "search.banned: 'a b' is not one word"),
        (PIECES, GreedyConfig(forced=("a ab",), banned=("ab",)), "search.forced: 'ab' is also in search.banned"),
        (PIECES, GreedyConfig(forced=("bb", "aa"), max_length=5), "are 6 pieces, but max_length=5"),
        (PIECES, BeamConfig(width=6), "a beam of 6, but the model has 5 pieces"),
        (CHARACTERS, GreedyConfig(prefix="一只猫"), "search.prefix: '猫' is not among the model's 9 pieces"),
        (CHARACTERS, GreedyConfig(forced=("一只狗",), banned=("只狗",)), "'只狗' is also in search.banned"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_kept(vocabulary, config, message):
    with pytest.raises(UserError) as raised:
        constraint_ids(config, vocabulary)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_words_that_the_prefix_says_take_no_room():
    config = GreedyConfig(prefix="ab", forced=("ab",), max_length=2)
    assert constraint_ids(config, PIECES).prefix == (PIECES.ids["ab▁"],)
    with pytest.raises(
        UserError, match="are 4 pieces, but max_length=3"
    ):  # the prefix ends in it, as no word
        constraint_ids(GreedyConfig(prefix="ab", forced=("b b",), max_length=3), PIECES)
