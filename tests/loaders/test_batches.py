"""Batches: an order that depends on seed and epoch alone, similar lengths together, padded captions."""

import numpy as np
import pytest
import torch

from captioning.loaders.batches import BATCHES_PER_POOL, TrainingBatches, bucketed_batches, token_batches
from captioning.loaders.captions import EncodedCaptions, pad_captions
from captioning.records import ImageRecord
from captioning.text.vocabulary import Vocabulary
from tests.helpers.training import (
    CAPTIONS,
    encoded_captions,
)


def test_order_is_a_function_of_seed_and_epoch_and_takes_each_image_once():
    captions, _ = encoded_captions(301)
    first = bucketed_batches(captions, size=7, seed=1, epoch=2)
    assert sorted(np.concatenate(first)) == list(range(301))
    assert {len(batch) for batch in first[:-1]} <= {7, 301 % 7}
    again, other = (
        bucketed_batches(captions, size=7, seed=1, epoch=2),
        bucketed_batches(captions, size=7, seed=1, epoch=3),
    )
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(first, other, strict=True))


def test_order_puts_captions_of_like_length_together():
    lengths = np.random.default_rng(0).integers(1, 20, 301)
    sentences = [ImageRecord(i, "", ("dog " * n,), "train") for i, n in enumerate(lengths)]
    vocabulary = Vocabulary.build(["dog"], min_count=1)
    captions = EncodedCaptions.from_records(sentences, vocabulary, max_length=20)

    def steps(batches):
        return sum(
            pad_captions(
                [captions.sample_ids(i, 5, np.random.default_rng(0)) for i in b], captions_per_image=5, pad=0
            )[0].shape[2]
            for b in batches
        )

    shuffled = np.array_split(np.random.default_rng(0).permutation(301), 43)
    assert steps(bucketed_batches(captions, size=7, seed=0, epoch=0)) < 0.75 * steps(shuffled)


def test_a_batch_says_how_many_captions_still_run():
    captions, _ = encoded_captions(11)
    dataset = TrainingBatches(
        list(range(11)),
        captions,
        lambda numbers, epoch: torch.zeros(len(numbers), 2, 3),
        captions_per_image=3,
        pad=0,
        seed=0,
        epoch=0,
    )
    batch = dataset[np.array([4, 0, 7])]
    targets = batch.ids[..., 1:] != 0
    assert batch.tokens == targets.sum()
    assert batch.batch_sizes == tuple(targets.sum(1).amax(0).tolist())
    for image in targets:  # longest first, so that those still running are the first ones
        lengths = image.sum(1).tolist()
        assert lengths == sorted(lengths, reverse=True)


def test_a_cut_caption_has_no_end():
    vocabulary = Vocabulary.build(CAPTIONS, min_count=1)
    captions = EncodedCaptions.from_records(
        [ImageRecord(1, "", (CAPTIONS[2],), "train")], vocabulary, max_length=3
    )
    assert captions.num_truncated == 1
    assert captions.ids.tolist()[0] == vocabulary.start and len(captions.ids) == 4
    assert vocabulary.end not in captions.ids


def test_a_token_spelled_like_a_special_one_is_not_one():
    vocabulary = Vocabulary.build(["a dog <pad> <end>"], min_count=1)
    ids = vocabulary.encode(["<pad>", "a", "<end>"], max_length=9)
    assert ids[1] == vocabulary.unk and ids[3] == vocabulary.unk


def slow_order(captions, *, tokens, width, seed, epoch):
    """Batches by tokens, an image at a time, from the sizes that the padded words would have."""
    images = len(captions.image_offsets) - 1
    generator = np.random.default_rng((seed, epoch, 0))
    own = [
        [len(captions.caption(c)) for c in range(*captions.image_offsets[i : i + 2])] for i in range(images)
    ]
    usual = max(1, int(tokens / (width * np.mean([max(lengths) - 1 for lengths in own]))))
    waiting, batches = generator.permutation(images).tolist(), []
    while waiting:
        pool, waiting = waiting[: usual * BATCHES_PER_POOL], waiting[usual * BATCHES_PER_POOL :]
        batch = []
        for image in sorted(pool, key=lambda i: max(own[i])):
            more = [*batch, image]
            if batch and len(more) * width * (max(max(own[i]) for i in more) - 1) > tokens:
                batches.append(batch)
                more = [image]
            batch = more
        batches.append(batch)
    return [batches[i] for i in generator.permutation(len(batches))]


@pytest.mark.parametrize(("tokens", "width"), [(61, 2), (200, 3), (3, 5), (10**6, 5)])
def test_batches_by_tokens_against_a_slow_way(tokens, width):
    captions, _ = encoded_captions(301)
    for seed, epoch in ((1, 2), (1, 3), (0, 2)):
        found = token_batches(captions, max_tokens=tokens, captions_per_image=width, seed=seed, epoch=epoch)
        assert [batch.tolist() for batch in found] == slow_order(
            captions, tokens=tokens, width=width, seed=seed, epoch=epoch
        )
        assert sorted(np.concatenate(found)) == list(range(301))  # each once
        for batch in found:  # as they are then packed
            chosen = [captions.sample_ids(i, width, np.random.default_rng(epoch)) for i in batch]
            words, _, _ = pad_captions(chosen, captions_per_image=width, pad=0)
            assert words[..., 1:].numel() <= tokens or len(batch) == 1


def test_batches_by_tokens_waste_less_than_batches_of_as_many_images():
    lengths = np.random.default_rng(0).integers(1, 40, 997)
    sentences = [ImageRecord(i, "", ("dog " * n,), "train") for i, n in enumerate(lengths)]
    captions = EncodedCaptions.from_records(sentences, Vocabulary.build(["dog"], min_count=1), max_length=40)

    def most(batches):
        """Words of the largest batch, which decides the memory it takes."""
        return max(len(batch) * (lengths[batch].max() + 1) for batch in batches)

    filled = token_batches(captions, max_tokens=400, captions_per_image=1, seed=0, epoch=0)
    size = -(-997 // len(filled))  # as many batches of images
    assert most(filled) <= 400 < 0.6 * most(bucketed_batches(captions, size=size, seed=0, epoch=0))
