"""Weights of captions and words, R-Drop, embedding dropout: beside slow ways of the same."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from captioning.loaders.batches import TrainingBatches
from captioning.loaders.captions import EncodedCaptions
from captioning.models.decoders import SoftAttentionLSTMConfig, TransformerConfig
from captioning.records import ImageRecord
from captioning.tensors import Features
from captioning.text.vocabulary import Vocabulary
from captioning.training import TrainingConfig
from captioning.training.batch_stats import BatchStats
from captioning.training.config import ConsensusConfig, EffectiveNumberConfig, FrequencyConfig
from captioning.training.loss_weights import compute_loss_weights, consensus
from captioning.training.losses import cross_entropy, divergence
from captioning.training.objective import CrossEntropy
from tests.helpers.training import CAPTIONS, records
from tests.training.test_rewards import WORDS, drawn, encoded, slow_cider

NAMES = Vocabulary(words=("<pad>", "<start>", "<end>", "<unk>", *(f"w{n}" for n in range(WORDS - 4))))
DECODERS = {
    "lstm": SoftAttentionLSTMConfig(embedding=7, hidden=11, attention_size=5, dropout=0.0),
    "transformer": TransformerConfig(hidden=14, feed_forward=23, heads=2, layers=2, dropout=0.0, tied=True),
}


class Holder(torch.nn.Module):
    """What an objective sees of a captioner."""

    def __init__(self, decoder, vocabulary):
        super().__init__()
        self.decoder, self.vocabulary = decoder, vocabulary

    def features(self, images):
        return images


def made(kind, *, seed=0, **changes):
    """A small model, and batches of 5 images with up to 3 captions; `weights` are of all captions."""
    torch.manual_seed(seed)
    vocabulary = Vocabulary.build(CAPTIONS, min_count=1)
    captions = EncodedCaptions.from_records(records(5), vocabulary, max_length=6)
    config = dataclasses.replace(DECODERS[kind], **changes)
    decoder = config.build(channels=3, vocabulary_size=len(vocabulary)).double()
    regions = torch.randn(5, 7, 3, dtype=torch.double)

    def batch(numbers, weights=None):
        return TrainingBatches(
            range(5), captions, lambda n, epoch: Features(regions[n]), captions_per_image=3, pad=0, seed=0, epoch=0,
            weights=weights,
        )[np.asarray(numbers)]  # fmt: skip

    return Holder(decoder, vocabulary), captions, batch


def loss_of(holder, batch, update=None, *, words=None, seed=None, **settings):
    # `to_device` makes features float32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("captioning.training.objective.to_device", lambda images, device: images)
        goal = CrossEntropy(holder, TrainingConfig(**settings), token_weights=words)
        if seed is not None:
            torch.manual_seed(seed)
        return goal(batch, update or BatchStats.of(batch, 0))


def plain_loss(holder, batch, *, word_weights, caption_weights, smoothing):
    """A token at a time."""
    decoder = holder.decoder
    hidden = decoder(batch.ids[..., :-1], decoder.encode_memory(batch.images)).hidden
    total, tokens = 0.0, 0
    for b, k, t in np.ndindex(tuple(hidden.shape[:3])):
        target = int(batch.ids[b, k, t + 1])
        if not target:
            continue
        logprob = torch.log(torch.softmax(decoder.logits(hidden[b, k, t][None])[0].float(), -1))
        nats = -(1 - smoothing) * logprob[target] - smoothing * logprob.mean()
        total = total + float(word_weights[target]) * float(caption_weights[b, k]) * nats
        tokens += 1
    return total / tokens


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_cross_entropy_equals_torch(smoothing):
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(5, 11, dtype=torch.double, generator=generator)
    weights, targets = torch.tensor([0.5, 0.0, 2.0, 1.0, 3.0]).double(), torch.tensor([1, 0, 10, 4, 4])
    values, gradients = [], []
    for way in (
        lambda x: cross_entropy(x, targets, smoothing=smoothing, weights=weights),
        lambda x: weights @ F.cross_entropy(x, targets, label_smoothing=smoothing, reduction="none"),
    ):
        logits = start.clone().requires_grad_()
        value = way(logits)
        (0.7 * value).backward()
        values.append(value.detach())
        gradients.append(logits.grad)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_divergence_is_the_mean_of_both_ways():
    torch.manual_seed(0)
    one, other = torch.randn(2, 5, 11, dtype=torch.double)
    p, q = torch.softmax(one, -1), torch.softmax(other, -1)
    wanted = sum(
        (a * (a / b).log() + b * (b / a).log()) / 2 for a, b in zip(p.flatten(), q.flatten(), strict=True)
    )
    torch.testing.assert_close(divergence(one, other), wanted)
    assert divergence(one, one) == 0


def test_captions_are_drawn_longest_first_each_once():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 9, (7, 4))
    sentences = [ImageRecord(i, "", tuple("dog " * n for n in own), "train") for i, own in enumerate(lengths)]
    captions = EncodedCaptions.from_records(sentences, Vocabulary.build(["dog"], min_count=1), max_length=20)
    for image, width in [(0, 4), (3, 9), (6, 3), (2, 1)]:
        numbers = captions.sample(image, width, np.random.default_rng(image))
        assert len(set(numbers)) == min(width, 4) and all(image * 4 <= n < image * 4 + 4 for n in numbers)
        found = [lengths[image, n - 4 * image] for n in numbers]
        assert found == sorted(found, reverse=True)
        own = captions.sample_ids(image, width, np.random.default_rng(image))
        assert [len(ids) - 2 for ids in own] == found


def test_consensus_against_slow_python():
    references, _, _ = drawn()
    references[3] = [[5, 6, 7, 2]]  # alone
    found = consensus(encoded(references), vocabulary_size=WORDS)
    raw = [
        [
            slow_cider(references, image, caption, among=[*own[:k], *own[k + 1 :]]) if len(own) > 1 else None
            for k, caption in enumerate(own)
        ]
        for image, own in enumerate(references)
    ]
    flat = [score for own in raw for score in own]
    mean = np.mean([score for score in flat if score is not None])
    assert found == pytest.approx([1.0 if score is None else score / mean for score in flat], abs=1e-9)
    assert np.std(found) > 0.2


@pytest.mark.parametrize("captions", [None, ConsensusConfig(strength=0.7)])
@pytest.mark.parametrize("words", [None, FrequencyConfig(power=0.5), EffectiveNumberConfig(beta=0.9)])
def test_weights_are_1_in_the_mean_over_tokens(captions, words):
    references, _, _ = drawn(1)
    config = TrainingConfig(caption_weights=captions, word_weights=words)
    weights = compute_loss_weights(encoded(references), NAMES, config)
    assert (weights.captions is None) == (captions is None) and (weights.words is None) == (words is None)
    tokens, number, counts = [], 0, {}
    for own in references:
        for caption in own:
            for word in caption:
                counts[word] = counts.get(word, 0) + 1
                tokens.append(
                    (1 if captions is None else weights.captions[number])
                    * (1 if words is None else weights.words[word])
                )
            number += 1
    assert np.mean(tokens) == pytest.approx(1, abs=1e-5)
    if words:  # between two words as the formula says; `<end>` is left out of it
        rare, common = (pick(range(4, WORDS), key=lambda word: counts[word]) for pick in (min, max))
        a, b = counts[rare], counts[common]
        if isinstance(words, FrequencyConfig):
            ratio = (b / a) ** 0.5
        else:
            ratio = (1 - 0.9**b) / (1 - 0.9**a)
        assert a < b
        assert weights.words[rare] / weights.words[common] == pytest.approx(ratio, rel=1e-5)


def test_the_end_weighs_what_words_weigh_in_the_mean():
    references, _, _ = drawn(2)
    weights = compute_loss_weights(
        encoded(references), NAMES, TrainingConfig(word_weights=FrequencyConfig(power=1.0))
    )
    said = np.array([word for own in references for caption in own for word in caption])
    assert weights.words[NAMES.end] == pytest.approx(1)
    assert weights.words[said[said > 3]].mean() == pytest.approx(1)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("r_drop", [0.0, 3.0])
def test_a_weighted_loss_against_a_loop_over_tokens(kind, r_drop):
    """Without dropout the two readings of R-Drop are one, and the loss is that without it."""
    holder, captions, batch = made(kind)
    rng = np.random.default_rng(0)
    own = rng.uniform(0, 2, captions.image_offsets[-1]).astype(np.float32)
    words = torch.from_numpy(rng.uniform(0, 2, len(holder.vocabulary)).astype(np.float32))
    whole = batch(range(5), own)
    found = loss_of(holder, whole, words=words, label_smoothing=0.1, r_drop=r_drop)
    wanted = plain_loss(holder, whole, word_weights=words, caption_weights=whole.weights, smoothing=0.1)
    torch.testing.assert_close(found.value, wanted.to(found.value), rtol=1e-5, atol=1e-6)
    for b, image in enumerate(range(5)):  # a caption stands beside its own weight
        for k, ids in enumerate(whole.ids[b]):
            if ids[0]:
                same = [
                    own[n]
                    for n in range(captions.image_offsets[image], captions.image_offsets[image + 1])
                    if captions.caption(n).tolist() == ids[ids != 0].tolist()
                ]
                assert whole.weights[b, k] in same
            else:
                assert whole.weights[b, k] == 0


@pytest.mark.parametrize("kind", DECODERS)
def test_weighted_parts_add_up_to_the_whole(kind):
    """So accumulated batches, and those of several processes, are one large batch."""
    holder, captions, batch = made(kind)
    own = np.random.default_rng(0).uniform(0, 2, captions.image_offsets[-1]).astype(np.float32)
    whole = batch(range(5), own)
    size = BatchStats.of(whole, 0)
    settings = {"r_drop": 1.0, "doubly_stochastic": 0.0 if kind == "transformer" else 0.5}
    parts = [loss_of(holder, batch(numbers, own), size, **settings).value for numbers in ([0, 3], [1, 2, 4])]
    torch.testing.assert_close(sum(parts), loss_of(holder, whole, **settings).value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", DECODERS)
def test_r_drop_draws_two_readings_of_one_memory_together(kind):
    holder, _, batch = made(kind, dropout=0.4)
    whole, decoder, calls = batch(range(5)), holder.decoder.train(), []
    encode_memory = decoder.encode_memory
    decoder.encode_memory = lambda features: calls.append(1) or encode_memory(features)
    found = loss_of(holder, whole, seed=5, r_drop=3.0, label_smoothing=0.0)
    assert len(calls) == 1
    torch.manual_seed(5)  # the same dropout, and each token by itself
    memory = encode_memory(whole.images)
    twice = whole.ids.repeat_interleave(2, 1)
    batch_sizes = tuple(2 * n for n in whole.batch_sizes)
    hidden = decoder(twice[..., :-1], memory, batch_sizes).hidden
    targets = twice[..., 1:]
    logits = torch.zeros(*targets.shape, decoder.vocabulary_size)
    logits[targets != 0] = decoder.logits(hidden[targets != 0]).float()
    p = torch.softmax(logits, -1)
    entropy, apart = 0.0, 0.0
    for b, k, t in np.ndindex(5, 3, targets.shape[2]):
        word = targets[b, 2 * k, t]
        if word:
            one, other = p[b, 2 * k, t], p[b, 2 * k + 1, t]
            entropy -= one[word].log() + other[word].log()
            apart += 0.5 * (one * (one / other).log()).sum() + 0.5 * (other * (other / one).log()).sum()
    wanted = (entropy + 3.0 * apart) / 2 / whole.tokens  # half of the paper's loss
    torch.testing.assert_close(found.value, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.sums["divergence"], apart.detach(), rtol=1e-4, atol=1e-6)
    assert apart > 0.1


@pytest.mark.parametrize("kind", DECODERS)
def test_embedding_dropout_takes_whole_words(kind):
    """As with a matrix in which their rows are zero; a tied one stays whole where words are chosen."""
    holder, _, batch = made(kind)
    whole = batch(range(5))
    found = loss_of(holder, whole, seed=5, embedding_dropout=0.5).value
    found.backward()
    gradient = holder.decoder.embedding.weight.grad
    torch.manual_seed(5)
    kept = F.dropout(torch.ones(len(holder.vocabulary), 1, dtype=torch.double), 0.5)
    assert {0.0, 2.0} == set(kept.flatten().tolist())
    other = copy.deepcopy(holder)
    other.decoder.embedding.weight = torch.nn.Parameter(holder.decoder.embedding.weight.detach() * kept)
    torch.testing.assert_close(found, loss_of(other, whole).value)
    read = whole.ids[..., :-1].unique()
    dropped = [word for word in read.tolist() if not kept[word]]
    assert dropped
    if kind == "lstm":
        assert not gradient[dropped].any() and gradient.any()
    assert found != loss_of(holder, whole).value
