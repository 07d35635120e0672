"""Searches find what they claim, over every decoder: claims read back, exhaustive search, independence."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from searching import (
    CHANNELS,
    DECODERS,
    END,
    PAD,
    RULES,
    START,
    UNWANTED,
    VOCABULARY,
    assert_same,
    captions,
    make,
    one,
    read,
    run,
    scene,
    scored,
)
from toy import Toy

from captioning.errors import UserError
from captioning.search import BeamConfig, GreedyConfig, SearchConfig, search
from captioning.search.scores import best, length_score, next_logp
from captioning.tensors import Features

beams = st.builds(
    lambda width, share, max_length, min_share, rule, alpha, patience: BeamConfig(
        width=width,
        n_best=math.ceil(width * share),
        max_length=max_length,
        min_length=int(max_length * min_share),
        length_rule=rule,
        alpha=alpha,
        patience=patience,
    ),
    st.integers(1, 7),
    st.sampled_from([0.01, 0.5, 1.0]),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(RULES),
    st.sampled_from([0.0, 0.6, 2.0]),
    st.sampled_from([0.5, 1.0, 2.0, None]),
)
greedies = st.builds(
    lambda max_length, share: GreedyConfig(max_length=max_length, min_length=int(max_length * share)),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.3, 1.0]),
)
ends = st.sampled_from([-2.0, 0.0, 2.0])


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=40, deadline=None)
@given(config=st.one_of(beams, greedies), images=st.integers(1, 5), seed=st.integers(0, 99), end=ends)
def test_claimed_log_probabilities_are_those_of_reading_the_words_back(name, config, images, seed, end):
    decoder, features = make(name, seed=seed, end=end), scene(images, seed=seed)
    found = run(decoder, features, config)
    length = found.words.shape[-1]
    assert length == found.lengths.max()
    logp = read(decoder, features, found.words[..., :-1]).gather(-1, found.words[..., None])[..., 0]
    counted = torch.arange(length) < found.lengths[..., None]
    torch.testing.assert_close(found.word_logp, logp.masked_fill(~counted, 0.0))
    some = found.lengths > 0
    torch.testing.assert_close(found.logp[some], found.word_logp.sum(-1)[some])
    assert (found.words.masked_fill(counted, PAD) == PAD).all()
    # what the other fields say
    last = found.words.gather(-1, (found.lengths - 1).clamp(min=0)[..., None])[..., 0]
    assert torch.equal(found.finished, (last == END) & some)
    assert ((found.words == END).sum(-1) == found.finished).all()
    assert (found.lengths[some & ~found.finished] == config.max_length).all()
    assert (found.lengths[found.finished] > config.min_length).all()
    assert not torch.isin(found.words[counted], torch.tensor(UNWANTED)).any()
    rule, alpha = (config.length_rule, config.alpha) if config.kind == "beam" else ("sum", 0.0)
    torch.testing.assert_close(
        found.scores[some], scored(found.logp[some], found.lengths[some].double(), rule, alpha)
    )
    # the order: finished, unfinished, empty; by score in each; no caption twice
    for image in range(images):
        listed = captions(found, image)
        assert listed == sorted(listed, key=lambda caption: (not caption[1], -caption[2]))
        assert len({words for words, *_ in listed}) == len(listed)
        empty = found.lengths[image] == 0
        assert (found.logp[image][empty] == -math.inf).all() and (
            found.scores[image][empty] == -math.inf
        ).all()
        assert not empty[: len(listed)].any()


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("rule", RULES)
def test_beam_of_one_is_greedy(name, rule):
    for seed, (low, high) in enumerate([(0, 7), (2, 11), (1, 5), (7, 7)]):
        decoder, features = make(name, seed=seed, end=1.0), scene(7, seed=seed)
        greedy = run(decoder, features, GreedyConfig(min_length=low, max_length=high))
        beam = run(decoder, features, BeamConfig(width=1, min_length=low, max_length=high, length_rule=rule))
        for field in ("words", "lengths", "finished"):
            assert torch.equal(getattr(beam, field), getattr(greedy, field))
        torch.testing.assert_close(beam.word_logp, greedy.word_logp)
        torch.testing.assert_close(beam.logp, greedy.logp)


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_takes_the_likeliest_wanted_word_each_time(name):
    decoder, features = make(name, seed=2, end=1.0), scene(7, seed=2)
    found = run(decoder, features, GreedyConfig(min_length=2, max_length=7))
    assert len(set(found.lengths.flatten().tolist())) > 1
    for image in range(7):
        words = []
        while len(words) < 7 and END not in words:
            logp = read(decoder, one(features, image), torch.tensor([[words]], dtype=torch.int64))[0, 0, -1]
            logp[[*UNWANTED, *([END] if len(words) < 2 else [])]] = -math.inf
            words.append(int(logp.argmax()))
        assert found.words[image, 0, : len(words)].tolist() == words
        assert found.lengths[image, 0] == len(words)


def exhaustive(decoder, features, *, low, high, rule, alpha):
    """Every caption of one image that the limits allow, best first: the finished, then those cut off."""
    wanted = [word for word in range(decoder.vocabulary_size) if word not in (*UNWANTED, END)]
    found = []
    for length in range(low + 1, high + 1):
        found += [(*words, END) for words in itertools.product(wanted, repeat=length - 1)]
    found += list(itertools.product(wanted, repeat=high))
    listed = torch.tensor([[(*words, *[PAD] * (high - len(words))) for words in found]])  # (1, K, T)
    logp = read(decoder, features, listed[..., :-1]).gather(-1, listed[..., None])[0, :, :, 0]
    ranked = [
        (words, words[-1] == END, scored(each[: len(words)].sum().item(), len(words), rule, alpha))
        for words, each in zip(found, logp, strict=True)
    ]
    return sorted(ranked, key=lambda caption: (not caption[1], -caption[2]))


@pytest.mark.parametrize("name", DECODERS)
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
            logp = read(decoder, features, torch.tensor([[words]], dtype=torch.int64))[0, 0, -1].tolist()
            for word in range(decoder.vocabulary_size):
                if word not in UNWANTED and (word != END or length > config.min_length):
                    ways.append(((*words, word), total + logp[word]))
        ways.sort(key=lambda way: -way[1])
        ended += [way for way in ways[: config.width] if way[0][-1] == END]
        live = [way for way in ways if way[0][-1] != END][: config.width]
        if len(ended) >= enough:
            live = []
            break

    def hypotheses(ways, finished):
        return sorted(
            [
                (words, finished, scored(logp, len(words), config.length_rule, config.alpha))
                for words, logp in ways
            ],
            key=lambda caption: -caption[2],
        )

    return (hypotheses(ended, True) + hypotheses(live, False))[: config.n_best]


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=20, deadline=None)
@given(config=beams, seed=st.integers(0, 99), end=ends)
def test_beam_is_the_plain_one_that_never_stops_early(name, config, seed, end):
    decoder, features = make(name, seed=seed, end=end), scene(2, seed=seed)
    found = run(decoder, features, config)
    for image in range(2):
        assert_same(captions(found, image), plain_beam(decoder, one(features, image), config))


class Counting(Toy):
    """Counts the words that it was asked for."""

    steps = 0

    def step(self, words, carry, memory):
        self.steps += 1
        return super().step(words, carry, memory)


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


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    "config", [GreedyConfig(max_length=7), BeamConfig(width=3, n_best=3, max_length=7, length_rule="gnmt")]
)
def test_captions_do_not_depend_on_batch_order_or_padding(name, config):
    decoder, features = make(name, seed=2, end=1.0), scene(7, seed=2)
    together = run(decoder, features, config)
    expected = [captions(together, image) for image in range(7)]
    assert len({len(words) for listed in expected for words, *_ in listed}) > 1  # ends differ
    for image in range(7):
        assert_same(captions(run(decoder, one(features, image), config), 0), expected[image])
    order = [3, 0, 6, 4, 2, 5, 1]
    shuffled = run(decoder, Features(regions=features.regions[order]), config)
    for place, image in enumerate(order):
        assert_same(captions(shuffled, place), expected[image])
    valid = torch.tensor([[True] * 3 + [False] * 4] * 7)
    garbage = torch.full((7, 4, CHANNELS), 1e3, dtype=torch.float64)
    padded = run(decoder, Features(torch.cat([features.regions, garbage], 1), valid), config)
    for image in range(7):
        assert_same(captions(padded, image), expected[image])


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("config", [GreedyConfig(max_length=5), BeamConfig(width=3, n_best=3, max_length=5)])
def test_unwanted_words_never_come_however_likely(name, config):
    decoder, features = make(name), scene(3)
    bias = decoder.bias if name == "toy" else decoder.words.bias
    bias.data[list(UNWANTED)] += 90
    found = run(decoder, features, config)
    counted = torch.arange(found.words.shape[-1]) < found.lengths[..., None]
    assert counted.any(-1).all() and not torch.isin(found.words[counted], torch.tensor(UNWANTED)).any()
    assert (found.word_logp[counted] < -30).all()  # not renormalised: the unwanted keep their share
    wanting = run(decoder, features, config, unwanted=())
    assert torch.isin(wanting.words, torch.tensor(UNWANTED)).any()


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("config", [GreedyConfig(max_length=5), BeamConfig(width=3, n_best=3, max_length=5)])
def test_without_an_end_the_longest_come_back_unfinished(name, config):
    found = run(make(name, end=-1e9), scene(2), config)
    assert not found.finished.any()
    assert (found.lengths == 5).all() and (found.words != END).all() and found.logp.isfinite().all()


def test_finished_come_before_unfinished_however_unlikely():
    decoder = make("toy", end=-4.0)
    config = BeamConfig(width=101, n_best=101, max_length=3, length_rule="sum", patience=None)
    found = run(decoder, scene(1), config)
    finished = found.finished[0].int()
    assert 0 < finished.sum() < 101 and (finished.diff() <= 0).all()
    assert found.scores[0][finished == 1].min() < found.scores[0][finished == 0].max()


@pytest.mark.parametrize("name", DECODERS)
def test_exactly_n_words_for_benchmarks(name):
    for config in (
        GreedyConfig(min_length=7, max_length=7),
        BeamConfig(width=3, min_length=7, max_length=7),
    ):
        found = run(make(name, end=20.0), scene(2), config)
        assert found.words.shape[-1] == 7 and (found.words != END).all() and not found.finished.any()


@pytest.mark.parametrize("name", DECODERS)
def test_fewer_captions_than_asked_for_leave_empty_rows(name):
    decoder, features = make(name, vocabulary=5), scene(2)  # word 4 and <end> alone may come
    found = run(decoder, features, BeamConfig(width=11, n_best=11, max_length=3, min_length=0))
    assert found.words.shape == (2, 11, 3)
    for image in range(2):
        assert {words for words, *_ in captions(found, image)} == {(2,), (4, 2), (4, 4, 2), (4, 4, 4)}
    assert (found.lengths[:, 4:] == 0).all() and (found.words[:, 4:] == PAD).all()


@pytest.mark.parametrize("config", [GreedyConfig(), BeamConfig(width=2, n_best=2)])
def test_no_word_to_say_is_no_caption(config):
    found = run(make("toy"), scene(2), config, unwanted=[word for word in range(VOCABULARY) if word != END])
    assert not found.lengths.any() and not found.finished.any() and found.words.shape[-1] == 0
    assert (found.logp == -math.inf).all()


@pytest.mark.parametrize("config", [GreedyConfig(), BeamConfig()])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_told(config, bad):
    decoder = make("toy")
    decoder.bias.data[7] = bad
    with pytest.raises(UserError, match="NaN or infinite"):
        run(decoder, scene(2), config)


@settings(max_examples=150, deadline=None)
@given(
    images=st.integers(1, 3),
    width=st.integers(1, 5),
    size=st.integers(1, 700),
    count=st.integers(1, 17),
    levels=st.sampled_from([2, 5, 1000]),
    seed=st.integers(0, 999),
)
def test_best_is_the_head_of_the_sorted_list(images, width, size, count, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    # few levels: ties; level 0: impossible
    draw = torch.randint(levels, (images, width, size), generator=generator)
    word_logp = (-draw / 7).double().masked_fill(draw == 0, -math.inf)
    logp = -torch.randint(levels, (images, width), generator=generator) / 5
    top = best(word_logp, logp.double(), count)
    sums = (word_logp + logp.double()[..., None]).flatten(1)
    expected = sums.sort(1, descending=True).values[:, :count]
    assert torch.equal(top.logp, expected)
    rows = torch.arange(images)[:, None]
    real = expected > -math.inf
    assert torch.equal(sums[rows, top.parents * size + top.words][real], expected[real])
    assert torch.equal(word_logp[rows, top.parents, top.words], top.word_logp)
    for row, parents, words in zip(real, top.parents, top.words, strict=True):
        assert len(set(zip(parents[row].tolist(), words[row].tolist(), strict=True))) == row.sum()
    again = [
        best(word_logp[image : image + 1], logp[image : image + 1].double(), count) for image in range(images)
    ]
    assert torch.equal(torch.cat([each.words for each in again]), top.words)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_next_logp_is_float32_at_least_and_leaves_the_logits(dtype):
    logits = (torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    before = logits.clone()
    logp = next_logp(logits, torch.tensor([1, 4]))
    assert torch.equal(logits, before)
    assert logp.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = logits.double() - logits.double().exp().sum(-1, keepdim=True).log()
    assert (logp[..., [1, 4]] == -math.inf).all()
    torch.testing.assert_close(logp[..., [0, 2, 3]].double(), expected[..., [0, 2, 3]], rtol=1e-5, atol=1e-5)


def test_length_rules_on_paper():
    logp = torch.tensor([-6.0])
    assert length_score(logp, 4, "sum", 0.5).item() == -6.0
    assert length_score(logp, 4, "mean", 0.5).item() == -1.5
    assert length_score(logp, 19, "gnmt", 0.5).item() == -3.0  # ((5 + 19) / 6)^0.5 = 2


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "beam", "width": 0},
        {"kind": "beam", "width": 2, "n_best": 3},
        {"kind": "beam", "length_rule": "median"},
        {"kind": "beam", "patience": 0},
        {"kind": "beam", "alpha": -1},
        {"kind": "beam", "beam_size": 3},
        {"kind": "greedy", "max_length": 0, "min_length": 0},
        {"kind": "greedy", "min_length": 21},
        {"kind": "best_first"},
    ],
)
def test_configs_out_of_range_are_refused(value):
    with pytest.raises(ValidationError):
        TypeAdapter(SearchConfig).validate_python(value)


def test_configs_parse():
    parse = TypeAdapter(SearchConfig).validate_python
    assert parse({"kind": "greedy", "max_length": 7}) == GreedyConfig(max_length=7)
    assert parse({"kind": "beam", "width": 3, "patience": None}) == BeamConfig(width=3, patience=None)
    with pytest.raises(ValueError, match="n_best must be from 1 to width, got 5 and 3"):
        BeamConfig(width=3, n_best=5)


@pytest.mark.parametrize(
    ("end", "unwanted"), [(VOCABULARY, ()), (-1, ()), (END, (END,)), (END, (VOCABULARY,))]
)
def test_ids_outside_the_vocabulary_are_refused(end, unwanted):
    decoder = make("toy")
    for config in (GreedyConfig(), BeamConfig()):
        with pytest.raises(ValueError, match=r"ids run from 0 to 12|among the unwanted"):
            search(decoder, decoder.remember(scene(1)), config, start=START, end=end, unwanted=unwanted)
