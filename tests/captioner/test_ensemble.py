"""An ensemble is a decoder: of one member it equals the member, of several it averages, in every search."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captioning.captioner.captioner import Captioner
from captioning.captioner.ensemble import EnsembleCaptioner, open_captioners
from captioning.captioner.predict import generate_captions
from captioning.generation import BeamConfig, GreedyConfig, search
from captioning.images.preprocessing import preprocess
from captioning.images.reading import load_image
from captioning.models.decoders import SoftAttentionLSTMConfig, TransformerConfig, build, unroll
from captioning.models.decoders.ensemble import Ensemble, Memory
from captioning.tensors import Features
from captioning.text.vocabulary import SpecialTokens
from tests.helpers.models import PREPROCESSING, save_tiny_model, tiny_captioner
from tests.helpers.running import tool
from tests.helpers.toy import Toy

CHANNELS, VOCABULARY = 5, 13
PAD, START, END, UNKNOWN = 0, 1, 2, 3
SUPPRESSED = (PAD, START, UNKNOWN)
SPECIAL = SpecialTokens(START, END, SUPPRESSED)
LSTM = SoftAttentionLSTMConfig(embedding=7, hidden=11, attention=3)
TRANSFORMER = TransformerConfig(hidden=14, feed_forward=17, heads=2, layers=2)
SEARCHES = [
    GreedyConfig(max_length=7),
    BeamConfig(width=3, n_best=3, max_length=7, length_rule="gnmt"),
    BeamConfig(width=7, n_best=2, max_length=5, min_length=3, length_rule="sum", patience=None),
]


def member(config, seed, *, channels=CHANNELS, vocabulary=VOCABULARY):
    """A decoder in float64, far from the start of training, that often ends; "toy": one with a nested state."""
    if config == "toy":
        toy = Toy(channels=channels, vocabulary_size=vocabulary, seed=seed).eval()
        toy.bias.data[END] += 1.5
        return toy
    torch.manual_seed(seed)
    decoder = build(config, channels=channels, vocabulary_size=vocabulary).double().eval()
    for parameter in decoder.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.4)
    decoder.vocab_projection.bias.data[END] += 1.5
    return decoder


def mixed(*, vocabulary=VOCABULARY, **settings):
    return Ensemble(
        [member(kind, seed, vocabulary=vocabulary) for seed, kind in enumerate((LSTM, TRANSFORMER, "toy"))],
        **settings,
    ).eval()


def scene(images, *, regions=3, channels=CHANNELS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Features(torch.randn(images, regions, channels, generator=generator, dtype=torch.float64))


@torch.no_grad()
def run(decoder, memory, config):
    return search(decoder, memory, config, special=SPECIAL)


@torch.no_grad()
def read(decoder, memory, words):
    """(B, K, T, V) log-probabilities of `words` (B, K, T) and what else might have stood there, by `forward`."""
    started = torch.cat([torch.full((*words.shape[:2], 1), START), words[..., :-1]], -1)
    return decoder.logits(decoder(started, memory).hidden).log_softmax(-1)


def by_hand(each, weights, average):
    """Averages of log-probabilities (M, ..., V), in probabilities and not in logarithms where it can be."""
    weights = torch.tensor(weights, dtype=torch.float64).view(-1, *[1] * (each.dim() - 1))
    weights = weights / weights.sum()
    if average == "probabilities":
        return (weights * each.exp()).sum(0).log()
    product = (each.exp() ** weights).prod(0)
    return (product / product.sum(-1, keepdim=True)).log()


@pytest.mark.parametrize("kind", [LSTM, TRANSFORMER, "toy"], ids=["lstm", "transformer", "toy"])
@pytest.mark.parametrize("config", SEARCHES, ids=range(3))
@pytest.mark.parametrize("average", ["probabilities", "log_probabilities"])
def test_an_ensemble_of_one_is_its_member_to_the_last_bit(kind, config, average):
    alone = member(kind, 0)
    together = Ensemble([alone], weights=[3.0], average=average).eval()
    features = scene(5)
    expected = run(alone, alone.encode_memory(features), config)
    found = run(together, together.encode_memory(features), config)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 3),
    width=st.integers(1, 5),
    length=st.integers(1, 7),
    weights=st.lists(st.sampled_from([0.5, 1.0, 7.0]), min_size=3, max_size=3),
    average=st.sampled_from(["probabilities", "log_probabilities"]),
    seed=st.integers(0, 99),
)
def test_forward_and_unroll_are_the_average_of_the_members(images, width, length, weights, average, seed):
    ensemble = mixed(weights=weights, average=average)
    features = scene(images, seed=seed)
    words = torch.randint(VOCABULARY, (images, width, length), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        memory = ensemble.encode_memory(features)
        steps, slow = ensemble(words, memory), unroll(ensemble, words, memory)
        each = torch.stack(
            [
                one.logits(one(words, one.encode_memory(features)).hidden).log_softmax(-1)
                for one in ensemble.members
            ]
        )
    assert steps.hidden.shape == (images, width, length, VOCABULARY)
    torch.testing.assert_close(steps.hidden, slow.hidden)
    torch.testing.assert_close(ensemble.logits(steps.hidden), by_hand(each, weights, average))
    torch.testing.assert_close(steps.hidden.exp().sum(-1), torch.ones(images, width, length).double())


@pytest.mark.parametrize("average", ["probabilities", "log_probabilities"])
def test_a_wide_beam_finds_the_best_of_all_captions_under_the_average(average):
    vocabulary, longest, weights = 7, 4, (1.0, 3.0)
    members = [member(kind, seed, vocabulary=vocabulary) for seed, kind in ((0, LSTM), (1, TRANSFORMER))]
    ensemble = Ensemble(members, weights=weights, average=average).eval()
    wanted = [word for word in range(vocabulary) if word not in (*SUPPRESSED, END)]
    every = [
        (*words, END) for length in range(1, longest) for words in itertools.product(wanted, repeat=length)
    ] + list(itertools.product(wanted, repeat=longest))
    listed = torch.tensor([[(*words, *[PAD] * (longest - len(words))) for words in every]])
    for seed in range(3):
        features = scene(1, seed=seed)
        each = torch.stack([read(one, one.encode_memory(features), listed) for one in members])
        logprob = by_hand(each, weights, average).gather(-1, listed[..., None])[0, :, :, 0]
        total = [sum(row[: len(words)].tolist()) for row, words in zip(logprob, every, strict=True)]
        ranked = sorted(
            zip(every, total, strict=True), key=lambda way: (way[0][-1] != END, -way[1] / len(way[0]))
        )
        found = run(
            ensemble,
            ensemble.encode_memory(features),
            BeamConfig(width=121, n_best=17, max_length=longest, patience=None),
        )
        for rank, (words, score) in enumerate(ranked[:17]):
            length = int(found.lengths[0, rank])
            assert tuple(found.ids[0, rank, :length].tolist()) == words
            assert math.isclose(found.logprob[0, rank], score, rel_tol=1e-9)


@pytest.mark.parametrize("config", SEARCHES, ids=range(3))
@pytest.mark.parametrize("average", ["probabilities", "log_probabilities"])
def test_claims_of_mixed_kinds_are_those_of_reading_the_words_back(config, average):
    ensemble, features = mixed(average=average), scene(7)
    memory = ensemble.encode_memory(features)
    found = run(ensemble, memory, config)
    assert len(set(found.lengths.flatten().tolist())) > 1 or config.min_length > 1
    logprob = read(ensemble, memory, found.ids).gather(-1, found.ids[..., None])[..., 0]
    counted = torch.arange(found.ids.shape[-1]) < found.lengths[..., None]
    torch.testing.assert_close(found.word_logprobs, logprob.masked_fill(~counted, 0.0))
    alone = [run(one, one.encode_memory(features), config).ids[:, 0] for one in ensemble.members]
    for words in alone:  # no member has its way with all images
        assert words.shape != found.ids[:, 0].shape or not torch.equal(words, found.ids[:, 0])
    for image in range(7):
        lone = run(ensemble, ensemble.encode_memory(Features(features.regions[image : image + 1])), config)
        length = lone.ids.shape[-1]
        assert torch.equal(found.ids[image, :, :length], lone.ids[0])
        torch.testing.assert_close(found.scores[image], lone.scores[0])


def test_each_member_may_have_features_of_its_own():
    members = [member(LSTM, 0, channels=5), member(TRANSFORMER, 1, channels=2)]
    each = [scene(3, regions=7, channels=5), scene(3, regions=4, channels=2)]
    ensemble = Ensemble(members).eval()
    memory = ensemble.encode_memory(each)
    words = torch.randint(VOCABULARY, (3, 2, 5))
    logprob = torch.stack(
        [read(one, one.encode_memory(own), words) for one, own in zip(members, each, strict=True)]
    )
    torch.testing.assert_close(read(ensemble, memory, words), by_hand(logprob, (1, 1), "probabilities"))
    assert ensemble(words, memory).attention is None  # 7 and 4 regions have no mean
    with pytest.raises(ValueError, match=r"shorter|longer"):
        ensemble.encode_memory(each[:1])


def test_attention_is_the_mean_of_the_members():
    ensemble, features = Ensemble([member(LSTM, 0), member(TRANSFORMER, 1)], weights=(1, 3)), scene(2)
    words = torch.randint(VOCABULARY, (2, 3, 5))
    with torch.no_grad():
        attention = ensemble.eval()(words, ensemble.encode_memory(features)).attention
        each = [one(words, one.encode_memory(features)).attention for one in ensemble.members]
    torch.testing.assert_close(attention, 0.25 * each[0] + 0.75 * each[1])
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 5).double())


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [math.inf, 1.0]])
def test_weights_must_be_one_a_member_and_above_zero(weights):
    with pytest.raises(ValueError, match="weight above 0"):
        Ensemble([member("toy", 0), member("toy", 1)], weights=weights)


def test_it_is_parallel_where_a_member_is():
    lstm, cached = (
        build(config, channels=5, vocabulary_size=7)
        for config in (SoftAttentionLSTMConfig(embedding=3, hidden=3), TransformerConfig(hidden=6, heads=2))
    )
    assert Ensemble([lstm, cached]).parallel and not Ensemble([lstm, lstm]).parallel


def test_members_must_share_a_vocabulary():
    with pytest.raises(ValueError, match="vocabularies differ"):
        Ensemble([member("toy", 0), member("toy", 1, vocabulary=17)])
    with pytest.raises(ValueError, match="weight above 0 for each member"):
        Ensemble([])


# --- captioners ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of one vocabulary that share neither decoder nor encoder nor preprocessing; one of other words."""
    root = tmp_path_factory.mktemp("models")
    save_tiny_model(root / "one", "lstm", search=BeamConfig(width=2, max_length=29))
    wider = replace(PREPROCESSING, size=24)
    save_tiny_model(root / "two", "transformer", encoder="frozen", preprocessing=wider)
    other = tiny_captioner("lstm")
    other.vocabulary = replace(other.vocabulary, words=(*other.vocabulary.words[:-2], "the", "red"))
    other.config = replace(other.config, vocabulary=other.vocabulary.fingerprint)
    other.save(root / "other", card="# Other words\n")
    return root


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    return tmp_path / "p.png"


@pytest.mark.parametrize("average", ["probabilities", "log_probabilities"])
def test_the_tool_speaks_for_several_models(folders, photo, average):
    models = [folders / "one", folders / "two"]
    done = tool("caption", photo, "--model", models[0], "--model", models[1], "--average", average, "--json")
    assert done.code == 0, done.err
    captioners = [Captioner.open(model) for model in models]
    with torch.inference_mode():
        memories = [
            each.encode_memory(preprocess(load_image(photo), each.config.preprocessing)[None])
            for each in captioners
        ]
        ensemble = Ensemble([each.decoder for each in captioners], average=average).eval()
        found = search(
            ensemble,
            Memory(tuple(memories)),
            BeamConfig(width=2, max_length=17),  # the first one's, but the second reads no more than 17 words
            special=SPECIAL,
        )
    told = json.loads(done.out)
    assert told["caption"] == " ".join(captioners[0].vocabulary.decode(found.ids[0, 0].tolist()))
    assert told["logprob"] == pytest.approx(float(found.logprob[0, 0]), abs=1e-5)


def test_one_model_is_opened_as_itself(folders):
    alone = open_captioners([folders / "one"], device=torch.device("cpu"), average="probabilities")
    assert isinstance(alone, Captioner)
    images = torch.rand(3, 3, 20, 20)
    ensemble = EnsembleCaptioner([alone], names=["one"], average="probabilities")
    expected = generate_captions(alone, images, [0, 1, 2])
    assert generate_captions(ensemble, [images], [0, 1, 2]) == expected


def test_other_words_are_told(folders, photo):
    done = tool("caption", photo, "--model", folders / "two", "--model", folders / "other")
    assert done.code == 2 and not done.out and len(done.err.splitlines()) == 1
    assert (
        str(folders / "other") in done.err and str(folders / "two") in done.err and "vocabulary" in done.err
    )
    done = tool("caption", photo, "--model", folders / "one", "--model", folders / "two", "--attention", "x")
    assert done.code == 2 and "--attention is for a single model" in done.err
