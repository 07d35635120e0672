"""Properties of every search with any constraints and decoder: log-probabilities, constraints, batch invariance."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.datasets.shapes import ShapesConfig
from captioning.errors import UserError
from captioning.generation import ConstraintIds
from captioning.images.preprocessing import Preprocessing, preprocess
from captioning.images.reading import load_image
from captioning.models.encoders import SmallCNNConfig
from captioning.tensors import Features
from tests.helpers.searching import (
    CHANNELS,
    DECODERS,
    END,
    FEW,
    ONE_OF_EACH,
    PAD,
    SUPPRESSED,
    VOCABULARY,
    allowed,
    assert_same,
    captions,
    ends,
    make,
    one,
    read,
    ruled_searches,
    run,
    scene,
    scored,
)

each_search = pytest.mark.parametrize("config", ONE_OF_EACH, ids=lambda config: config.kind)
each_decoder = pytest.mark.parametrize("name", DECODERS)
a_few_decoders = pytest.mark.parametrize("name", FEW)


@each_decoder
@settings(max_examples=25, deadline=None)
@given(ruled=ruled_searches(), images=st.integers(1, 3), seed=st.integers(0, 99), end=ends)
def test_claims_are_those_of_reading_the_words_back_and_rules_are_kept(name, ruled, images, seed, end):
    ids, config = ruled
    decoder, features = make(name, seed=seed, end=end), scene(images, seed=seed)
    found = run(decoder, features, config, constraints=ids)
    length = found.ids.shape[-1]
    assert length == found.lengths.max()
    if not length:
        return
    logprob = read(decoder, features, found.ids[..., :-1]).gather(-1, found.ids[..., None])[..., 0]
    counted = torch.arange(length) < found.lengths[..., None]
    torch.testing.assert_close(found.word_logprobs, logprob.masked_fill(~counted, 0.0))
    some = found.lengths > 0
    torch.testing.assert_close(found.logprob[some], found.word_logprobs.sum(-1)[some])
    assert (found.ids.masked_fill(counted, PAD) == PAD).all()
    # what the other fields say
    last = found.ids.gather(-1, (found.lengths - 1).clamp(min=0)[..., None])[..., 0]
    assert torch.equal(found.finished, (last == END) & some)
    assert ((found.ids == END).sum(-1) == found.finished).all()
    assert (found.lengths[some & ~found.finished] == config.max_length).all()
    assert not torch.isin(found.ids[counted], torch.tensor(SUPPRESSED)).any()
    rule, alpha = ("sum", 0.0) if config.kind == "greedy" else (config.length_rule, config.alpha)
    torch.testing.assert_close(
        found.scores[some], scored(found.logprob[some], found.lengths[some].double(), rule, alpha)
    )
    for image in range(images):
        listed = captions(found, image)
        # the order: finished, unfinished, empty; by score in each; no caption twice
        assert listed == sorted(listed, key=lambda caption: (not caption[1], -caption[2]))
        assert config.kind == "sample" or len({words for words, *_ in listed}) == len(listed)
        empty = found.lengths[image] == 0
        assert (found.logprob[image][empty] == -math.inf).all()
        assert (found.scores[image][empty] == -math.inf).all()
        assert not empty[: len(listed)].any()
        for words, *_ in listed:
            # what is forced may repeat
            size = 0 if ids.forced else config.no_repeat
            assert allowed(words, ids, low=config.min_length, high=config.max_length, no_repeat=size), words
        if not config.no_repeat and not ids.endings:
            assert listed  # these rules alone leave no caption


@a_few_decoders
@each_search
@pytest.mark.parametrize("ruled", [False, True])
def test_captions_do_not_depend_on_batch_order_or_padding(name, config, ruled):
    decoder, features = make(name, seed=2, end=1.0), scene(7, seed=2)
    keys = torch.arange(7) * 1_000_003
    ids = ConstraintIds(prefix=(4,), forced=((5, 6), (7,)), banned=(8,), endings=(9,)) if ruled else None
    config = replace(config, no_repeat=2 * ruled)
    together = run(decoder, features, config, constraints=ids, keys=keys)
    expected = [captions(together, image) for image in range(7)]
    assert len({words for listed in expected for words, *_ in listed}) > 1
    for image in range(7):
        alone = run(decoder, one(features, image), config, constraints=ids, keys=keys[image : image + 1])
        assert_same(captions(alone, 0), expected[image])
    order = [3, 0, 6, 4, 2, 5, 1]
    shuffled = run(
        decoder, Features(regions=features.regions[order]), config, constraints=ids, keys=keys[order]
    )
    for place, image in enumerate(order):
        assert_same(captions(shuffled, place), expected[image])
    valid = torch.tensor([[True] * 3 + [False] * 4] * 7)
    garbage = torch.full((7, 4, CHANNELS), 1e3, dtype=torch.float64)
    padded = Features(torch.cat([features.regions, garbage], 1), valid)
    padded_found = run(decoder, padded, config, constraints=ids, keys=keys)
    for image in range(7):
        assert_same(captions(padded_found, image), expected[image])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Regions of 1,000 drawn scenes: of all at once, and of batches of their own sizes in another order, padded."""
    root = tmp_path_factory.mktemp("shapes")
    records = ShapesConfig(root=str(root), train=1000, val=0, test=0, unseen=0, size=32).load().records
    preparing = Preprocessing(size=32)
    pixels = torch.stack([preprocess(load_image(record.path), preparing) for record in records]).double()
    torch.manual_seed(3)
    encoder = SmallCNNConfig(channels=(3, CHANNELS), frequencies=2, grid=2).build().double()
    with torch.no_grad():
        encoder.train()(pixels)  # for BatchNorm's statistics
        encoder.eval()
        plain = encoder(pixels).regions  # (B, 4, D)
        middle, spread = plain.mean(0), plain.std(0)

        def regions_of(images):
            return (
                2 * (encoder(images).regions - middle) / spread
            )  # as far apart as what decoders are tested with

        order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
        batches = []
        for places in (order[:1], order[1:14], order[14:507], order[507:]):
            garbage = torch.full((len(places), 3, CHANNELS), 7.0, dtype=torch.float64)
            valid = torch.tensor([[True] * 4 + [False] * 3] * len(places))
            batches.append((places, Features(torch.cat([regions_of(pixels[places]), garbage], 1), valid)))
        return Features(regions_of(pixels)), batches


@each_decoder
@each_search
def test_captions_of_a_thousand_scenes_are_the_same_in_batches_of_any_size_and_order(drawn, name, config):
    together, batches = drawn
    decoder, config = make(name, seed=2, end=-1.0), replace(config, max_length=5)
    keys = torch.arange(1000) * 7
    expected = run(decoder, together, config, keys=keys).ids
    assert len({tuple(words) for words in expected[:, 0].tolist()}) > 4
    for places, features in batches:
        words = run(decoder, features, config, keys=keys[places]).ids
        length = words.shape[-1]
        assert torch.equal(words, expected[places][..., :length])
        assert (expected[places][..., length:] == PAD).all()


@a_few_decoders
@each_search
def test_unwanted_words_never_come_however_likely(name, config):
    decoder, features = make(name), scene(3)
    bias = decoder.bias if name == "toy" else decoder.vocab_projection.bias
    bias.data[list(SUPPRESSED)] += 90
    found = run(decoder, features, config)
    counted = torch.arange(found.ids.shape[-1]) < found.lengths[..., None]
    assert counted[:, 0].any(-1).all() and not torch.isin(found.ids[counted], torch.tensor(SUPPRESSED)).any()
    assert (found.word_logprobs[counted] < -30).all()  # not renormalised: the unwanted keep their share
    wanting = run(decoder, features, config, suppress_ids=())
    assert torch.isin(wanting.ids, torch.tensor(SUPPRESSED)).any()


@a_few_decoders
@each_search
def test_without_an_end_the_longest_come_back_unfinished(name, config):
    found = run(make(name, end=-1e9), scene(2), config)
    assert not found.finished.any()
    some = found.lengths > 0  # groups may have found the same
    assert some[:, 0].all() and (found.lengths[some] == 7).all() and (found.ids != END).all()
    assert found.logprob[some].isfinite().all()


@a_few_decoders
@each_search
def test_exactly_n_words_for_benchmarks(name, config):
    found = run(make(name, end=20.0), scene(2), replace(config, min_length=7))
    assert found.ids.shape[-1] == 7 and (found.ids != END).all() and not found.finished.any()


@each_search
def test_no_word_to_say_is_no_caption(config):
    found = run(
        make("toy"), scene(2), config, suppress_ids=[word for word in range(VOCABULARY) if word != END]
    )
    assert not found.lengths.any() and not found.finished.any() and found.ids.shape[-1] == 0
    assert (found.logprob == -math.inf).all()


@each_search
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_told(config, bad):
    decoder = make("toy")
    decoder.bias.data[7] = bad
    with pytest.raises(UserError, match="NaN or infinite"):
        run(decoder, scene(2), config)


@each_search
def test_rules_with_words_need_their_ids(config):
    for words in ({"prefix": "a"}, {"forced": ("a",)}, {"banned": ("a",)}, {"no_bad_ending": True}):
        with pytest.raises(ValueError, match="constraint_ids"):
            run(make("toy"), scene(1), replace(config, **words))
    for ids in (
        ConstraintIds(prefix=(VOCABULARY,)),
        ConstraintIds(forced=((-1,),)),
        ConstraintIds(endings=(99,)),
    ):
        with pytest.raises(ValueError, match="ids run from 0 to 12"):
            run(make("toy"), scene(1), config, constraints=ids)
    for ids in (ConstraintIds(prefix=(4,) * 7), ConstraintIds(forced=((4, 5, 6), (4, 7, 5, 6)))):
        with pytest.raises(ValueError, match=r"leaves no word|do not fit"):
            run(make("toy"), scene(1), config, constraints=ids)
