"""Numbers of words by teacher forcing, and search and model errors by exhaustive search."""

import itertools
import math

import pytest
import torch

from captioning.captioner.predict import generate_captions
from captioning.generation import BeamConfig
from captioning.inspection.rescoring import error_shares, judge, word_details
from captioning.text.vocabulary import SPECIALS, Vocabulary
from tests.helpers.models import WORDS, tiny_captioner

V = Vocabulary


WANTED = range(len(SPECIALS), len(SPECIALS) + len(WORDS))


BEAMS = [
    BeamConfig(width=3, n_best=3, max_length=7),
    BeamConfig(width=5, n_best=2, max_length=6, min_length=2, length_rule="gnmt", patience=2.0),
    BeamConfig(width=2, n_best=1, max_length=5, length_rule="sum", patience=None),
    BeamConfig(width=3, n_best=3, max_length=7, prefix="a red", no_repeat=1),
]


def unsure(kind):
    """A captioner that holds several words likely at each step."""
    captioner = tiny_captioner(kind)
    captioner.decoder.vocab_projection.weight.data *= 0.3
    return captioner


def pixels(images, seed=0):
    return torch.rand(images, 3, 20, 20, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def distribution(captioner, image, words):
    """(V,) log-probabilities of the word behind `words`, by `forward`."""
    steps = captioner.decoder(torch.tensor([[[V.start, *words]]]), captioner.encode_memory(image))
    return captioner.decoder.logits(steps.hidden)[0, 0, -1].double().log_softmax(-1)


def text(words):
    return " ".join((*SPECIALS, *WORDS)[word] for word in words if word != V.end)


def score(logprob, length, config):
    rule = {"sum": 1, "mean": length, "gnmt": ((5 + length) / 6) ** config.alpha}[config.length_rule]
    return logprob / rule


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_words_have_the_numbers_of_their_distributions(kind):
    captioner, images = unsure(kind), pixels(3)
    config = BEAMS[0]
    predictions = generate_captions(captioner, images, [1, 2, 3], config=config)
    with torch.inference_mode():
        memory = captioner.encode_memory(images)
    details = word_details(captioner, memory, predictions, config)
    lengths = set()
    for image, prediction, listed in zip(images, predictions, details, strict=True):
        for each, words in zip((prediction, *prediction.alternatives), listed, strict=True):
            said = each.caption.split() + ["<end>"] * each.finished
            assert [word.word for word in words] == said
            assert sum(word.logprob for word in words) == pytest.approx(each.logprob, abs=1e-5)
            lengths.add(len(said))
            for t, word in enumerate(words):
                logprob = distribution(
                    captioner, image[None], [captioner.vocabulary.ids[w] for w in said[:t]]
                )
                assert word.logprob == pytest.approx(
                    float(logprob[captioner.vocabulary.ids[word.word]]), abs=1e-5
                )
                assert word.probability == pytest.approx(math.exp(word.logprob))
                assert word.entropy == pytest.approx(-float((logprob.exp() * logprob).sum()), abs=1e-5)
    assert len(lengths) > 1


def every_caption(captioner, image, config):
    """{text: score} of all captions that end within the length, by brute force."""
    bodies = [
        words
        for length in range(config.min_length, config.max_length)
        for words in itertools.product(WANTED, repeat=length)
    ]
    longest = config.max_length
    listed = torch.tensor([[[*words, V.end, *[V.pad] * (longest - 1 - len(words))] for words in bodies]])
    started = torch.cat([torch.full_like(listed[..., :1], V.start), listed[..., :-1]], -1)
    with torch.no_grad():
        steps = captioner.decoder(started, captioner.encode_memory(image))
        logprob = captioner.decoder.logits(steps.hidden).double().log_softmax(-1)
    logprob = logprob.gather(-1, listed[..., None])[0, :, :, 0]
    return {
        text(words): score(float(each[: len(words) + 1].sum()), len(words) + 1, config)
        for words, each in zip(bodies, logprob, strict=True)
    }


def test_search_errors_and_model_errors_by_all_captions():
    captioner = tiny_captioner("lstm")
    config = BeamConfig(width=1, max_length=4, length_rule="mean", patience=None)
    images = pixels(7, seed=2)
    ids = list(range(7))
    found = generate_captions(captioner, images, ids, config=config)
    listed = [every_caption(captioner, image[None], config) for image in images]
    with torch.inference_mode():
        memory = captioner.encode_memory(images)
    best = [max(each, key=each.__getitem__) for each in listed]
    verdicts = judge(captioner, memory, found, [[text] for text in best], config)
    for prediction, verdict, top, scores in zip(found, verdicts, best, listed, strict=True):
        assert (
            verdict.score == pytest.approx(scores[top], abs=1e-5) and verdict.found_score == prediction.score
        )
        assert verdict.reference == top
        assert verdict.error == ("none" if prediction.caption == top and prediction.finished else "search")
    assert {verdict.error for verdict in verdicts} == {"none", "search"}
    told = error_shares(verdicts)
    assert told["images"] == 7 and told["search_error"] + told["none"] == pytest.approx(1)
    # the worst and one in the middle: the better of the two counts, whatever the order
    ranked = [sorted(each, key=each.__getitem__) for each in listed]
    poor = [[each[0], each[len(each) // 2]] for each in ranked]
    for verdict, prediction, texts, scores in zip(
        judge(captioner, memory, found, poor, config), found, poor, listed, strict=True
    ):
        assert verdict.reference == texts[1] and verdict.score == pytest.approx(scores[texts[1]], abs=1e-5)
        ahead = not prediction.finished or scores[texts[1]] > prediction.score
        assert verdict.error == ("search" if ahead else "model")
    # no one to blame: words that are unknown, forbidden, too many; no references at all
    unknown = [["a zebra runs"], ["a dog on grass"], ["<unk>"], [], [""], ["a", "A zebra."], ["a cat"]]
    told = [verdict.error for verdict in judge(captioner, memory, found, unknown, config)]
    assert told[:5] == ["unknown"] * 5 and "unknown" not in told[5:]
    ruled = BeamConfig(width=1, max_length=4, banned=("cat",), prefix="a")
    told = [
        verdict.error
        for verdict in judge(
            captioner,
            memory,
            generate_captions(captioner, images, ids, config=ruled),
            [["the dog"], ["a cat"], ["a red dog"]] + [["a"]] * 4,
            ruled,
        )
    ]
    assert told[:2] == ["unknown"] * 2 and told[2] != "unknown"
