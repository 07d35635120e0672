"""Captions of pieces in words: rewards beside slow Python on the joined text."""

import numpy as np
import pytest
import torch

from captioning.loaders.captions import EncodedCaptions
from captioning.metrics.caption_statistics import BAD_ENDINGS
from captioning.records import ImageRecord
from captioning.text.vocabulary import Vocabulary
from captioning.training.config import ConsensusConfig, TrainingConfig
from captioning.training.loss_weights import compute_loss_weights
from captioning.training.rewards import References
from captioning.training.word_captions import WordCaptions
from tests.helpers.rewards import slow_cider

CAPTIONS = [
    ["a red dog runs on the grass", "the red dog runs"],
    ["a cat sits on a mat", "the cat can't run on the red mat", "a red mat"],
    ["the grass"],
]
CHINESE = [["一只狗在草地上跑", "两只狗在草地上"], ["一个男人在公园里", "公园里有一只狗。", "公园"], ["草地"]]
END = "<end>"


def given(captions, tokenizer, max_length=99):
    records = [ImageRecord(number, "", tuple(own), "train") for number, own in enumerate(captions)]
    texts = [text for own in captions for text in own]
    vocabulary = Vocabulary.build_bpe(texts, size=26, min_count=1, tokenizer=tokenizer)
    return vocabulary, EncodedCaptions.from_records(records, vocabulary, max_length=max_length)


@pytest.mark.parametrize(
    ("captions", "tokenizer", "generated"),
    [
        # other words than the references', one of them twice; no words; a caption cut off
        (
            CAPTIONS,
            "ptb",
            [
                ["a red dog runs on the grass", "tan gnat tan mint", "a sod on a mat"],
                ["red mat", "", "the cat can't"],
            ],
        ),
        (
            CHINESE,
            "characters",
            [["一只狗在公园里", "两只狗在草地上", "草"], ["公园里有一只狗", "狗", "在在在"]],
        ),
    ],
)
def test_rewards_are_cider_of_the_words(captions, tokenizer, generated):
    vocabulary, encoded = given(captions, tokenizer)
    words = WordCaptions(encoded, vocabulary, max_length=30)
    rows = [
        [vocabulary.encode(vocabulary.tokenize(text), max_length=30)[1:] for text in own] for own in generated
    ]
    rows[1][2].pop()  # without <end>
    lengths = torch.tensor([[len(row) for row in own] for own in rows])
    ids = torch.zeros(2, 3, int(lengths.max()), dtype=torch.int64)
    for b, own in enumerate(rows):
        for k, row in enumerate(own):
            ids[b, k, : len(row)] = torch.tensor(row)
    found, counts = words.of(ids, lengths)
    references = References(words.captions, vocabulary_size=words.vocabulary_size)
    rewards = references.score(np.array([1, 0]), found.numpy(), counts.numpy())
    split = [[(*vocabulary.split(text), END) for text in own] for own in captions]
    for b, image in enumerate((1, 0)):
        for k, text in enumerate(generated[b]):
            caption = vocabulary.split(text) + ([END] if (b, k) != (1, 2) else [])
            assert counts[b, k] == len(caption)
            assert rewards.cider[b, k] == pytest.approx(slow_cider(split, image, caption), abs=1e-9)
    assert found.max() < words.vocabulary_size and rewards.cider.max() > 1


def test_bad_endings_and_cut_references():
    vocabulary, encoded = given(CAPTIONS, "ptb", max_length=4)
    words = WordCaptions(encoded, vocabulary, max_length=5)
    text = vocabulary.text(encoded.caption(0))
    assert text and CAPTIONS[0][0].startswith(text)
    ends = words.captions.ids[words.captions.caption_offsets[1:] - 1] == vocabulary.end
    assert ends.tolist() == [bool(encoded.caption(n)[-1] == vocabulary.end) for n in range(6)]
    a = vocabulary.encode(vocabulary.tokenize("a"), max_length=4)[1:]
    ids, _ = words.of(torch.tensor([[a]]), torch.tensor([[len(a)]]))
    assert ids[0, 0, 0] in words.ids_of(BAD_ENDINGS)


def test_consensus_weights_are_those_of_the_words():
    """The same captions have the same weights whatever their tokens; only their lengths in tokens differ."""
    config = TrainingConfig(caption_weights=ConsensusConfig(strength=1.0))
    vocabulary, encoded = given(CAPTIONS, "ptb")
    pieces = compute_loss_weights(encoded, vocabulary, config).captions
    whole = Vocabulary.build([text for own in CAPTIONS for text in own], min_count=1)
    records = [ImageRecord(number, "", tuple(own), "train") for number, own in enumerate(CAPTIONS)]
    in_words = EncodedCaptions.from_records(records, whole, max_length=99)
    expected = compute_loss_weights(in_words, whole, config).captions
    np.testing.assert_allclose(pieces / pieces.sum(), expected / expected.sum(), rtol=1e-6)
    assert np.ptp(pieces) > 0.1
