"""Scheduled sampling beside a choice word by word, and by what it may and may not replace."""

import numpy as np
import pytest
import torch

from captioning.captioner.captioner import Captioner
from captioning.loaders.captions import pad_captions
from captioning.models.decoders.base import unroll
from captioning.tensors import Batch, Features
from captioning.text.vocabulary import SPECIALS, Vocabulary
from captioning.training import TrainingConfig
from captioning.training.batch_stats import BatchStats
from captioning.training.config import ScheduledSamplingConfig
from captioning.training.objective import CrossEntropy
from captioning.training.scheduled_sampling import mix_in_predictions
from tests.helpers.decoders import CONFIGS, VOCABULARY, make, scene
from tests.helpers.models import tiny_captioner
from tests.helpers.toy import Toy

WORDS = Vocabulary(words=(*SPECIALS, *(f"w{n}" for n in range(VOCABULARY - len(SPECIALS)))))


def captions(images, width, longest, *, seed=0):
    """Words (B, K, T) to be read, longest first, and how many run."""
    rng = np.random.default_rng(seed)
    chosen = []
    for _ in range(images):
        lengths = sorted(rng.integers(1, longest, rng.integers(1, width + 1)), reverse=True)
        chosen.append([np.array([1, *rng.integers(4, VOCABULARY, n), 2]) for n in lengths])
    words, batch_sizes, tokens = pad_captions(chosen, captions_per_image=width, pad=0)
    return words, batch_sizes, tokens


def test_the_probability_is_a_function_of_the_epoch():
    rising = ScheduledSamplingConfig()  # Rennie et al. 2017
    assert [rising.probability(epoch) for epoch in (0, 4, 5, 9, 10, 24, 25, 99)] == pytest.approx(
        [0, 0, 0.05, 0.05, 0.1, 0.2, 0.25, 0.25]
    )
    steep = ScheduledSamplingConfig(start=0.1, increase=0.5, every=1, most=1.0)
    assert [steep.probability(epoch) for epoch in range(4)] == pytest.approx([0.1, 0.6, 1.0, 1.0])


@pytest.mark.parametrize("name", CONFIGS)
def test_as_many_passes_as_words_are_a_choice_word_by_word(name):
    decoder = make(name)
    features, _ = scene(3, 2, 5, 7, masked=True)
    memory = decoder.encode_memory(features)
    words, batch_sizes, _ = captions(3, 2, 8)
    read = words[..., :-1]
    torch.manual_seed(3)
    mixed = mix_in_predictions(
        decoder, memory, read, batch_sizes, vocabulary=WORDS, probability=0.6, passes=read.shape[2]
    )
    torch.manual_seed(3)
    own, chance = torch.rand(read.shape) < 0.6, torch.rand(read.shape, dtype=torch.double)
    state, plain, replaced = decoder.init_state(memory, 2), read.clone(), 0
    for t in range(read.shape[2] - 1):
        step, state = decoder.step(plain[..., t], state, memory)
        probabilities = decoder.logits(step.hidden).softmax(-1)
        for b, k in np.ndindex(3, 2):
            if own[b, k, t + 1] and read[b, k, t + 1] > 2:
                allowed = probabilities[b, k].tolist()
                allowed[:4] = [0, 0, 0, 0]  # words that no search reads
                cumulated = np.cumsum(allowed) / sum(allowed)
                plain[b, k, t + 1] = int(np.argmax(cumulated > chance[b, k, t + 1].item()))
                replaced += 1
    assert torch.equal(mixed, plain)
    assert replaced > 5 and (mixed != read).sum() > 3


@pytest.mark.parametrize(("probability", "passes"), [(0.0, 1), (0.3, 2), (1.0, 3)])
def test_what_is_replaced(probability, passes):
    """Places at random, as often as asked for; never <start>, <end> or <pad>, and never by a special word."""
    decoder = make("transformer")
    memory = decoder.encode_memory(scene(5, 3, 5, 7)[0])
    words, batch_sizes, _ = captions(5, 3, 13)
    read = words[..., :-1]
    places = torch.zeros(read.shape, dtype=torch.double)
    for seed in range(40):
        torch.manual_seed(seed)
        mixed = mix_in_predictions(
            decoder, memory, read, batch_sizes, vocabulary=WORDS, probability=probability, passes=passes
        )
        kept = read <= 2
        assert torch.equal(mixed[kept], read[kept])
        assert mixed[~kept].min() > 3
        torch.manual_seed(seed)
        own = (torch.rand(read.shape) < probability) & ~kept
        assert torch.equal(mixed[~own], read[~own])
        places += own
    share = places[read > 2].mean() / 40
    spread = (probability * (1 - probability) / (40 * (read > 2).sum())) ** 0.5
    assert abs(share - probability) <= 4 * spread


def test_own_words_come_with_the_models_probabilities():
    decoder, count = Toy(channels=3, vocabulary_size=7), 20000
    memory = decoder.encode_memory(Features(torch.randn(1, 2, 3, dtype=torch.double)))
    words = torch.tensor([1, 5, 6, 4]).expand(1, count, 4)
    names = Vocabulary(words=(*SPECIALS, "a", "b", "c"))
    torch.manual_seed(0)
    mixed = mix_in_predictions(
        decoder, memory, words, (count,) * 4, vocabulary=names, probability=1.0, passes=1
    )
    for t in range(1, 4):  # behind the caption's own words, as there is one pass
        before = unroll(decoder, words[:, :1, :t], memory).hidden[0, 0, -1]
        wanted = decoder.logits(before)[4:].softmax(0).detach()
        found = torch.bincount(mixed[0, :, t], minlength=7)[4:] / count
        spread = (wanted * (1 - wanted) / count).sqrt()
        assert ((found - wanted).abs() < 4 * spread).all()


def batch_of(captioner: Captioner) -> Batch:
    rng = np.random.default_rng(0)
    chosen = [[np.array([1, *rng.integers(4, 13, n), 2]) for n in (7, 5, 2)] for _ in range(2)]
    words, batch_sizes, tokens = pad_captions(chosen, captions_per_image=3, pad=0)
    size = captioner.config.preprocessing.size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Batch([7, 8], pixels, words, batch_sizes, tokens)


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_probability_0_changes_no_number(kind):
    captioner = tiny_captioner(kind).train()
    batch = batch_of(captioner)
    losses = []
    for scheduled, epoch in (
        (None, 3),
        (ScheduledSamplingConfig(), 4),  # it rises from the sixth epoch on
        (ScheduledSamplingConfig(), 5),
    ):
        goal = CrossEntropy(captioner, TrainingConfig(scheduled_sampling=scheduled))
        torch.manual_seed(11)
        losses.append(goal(batch, BatchStats.of(batch, 0)._replace(epoch=epoch)).value.item())
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
