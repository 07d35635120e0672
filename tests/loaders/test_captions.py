"""Encoded captions: which captions of an image a batch takes, and in what order."""

import numpy as np

from captioning.loaders.captions import EncodedCaptions
from captioning.records import ImageRecord
from captioning.text.vocabulary import Vocabulary


def test_captions_are_sampled_without_replacement_longest_first():
    lengths = np.random.default_rng(1).integers(1, 9, (7, 4))
    records = [ImageRecord(i, "", tuple("dog " * n for n in row), "train") for i, row in enumerate(lengths)]
    captions = EncodedCaptions.from_records(records, Vocabulary.build(["dog"], min_count=1), max_length=20)
    for image, count in [(0, 4), (3, 9), (6, 3), (2, 1)]:
        numbers = captions.sample(image, count, np.random.default_rng(image))
        assert len(set(numbers)) == min(count, 4)
        assert all(image * 4 <= number < image * 4 + 4 for number in numbers)
        words = [lengths[image, number - 4 * image] for number in numbers]
        assert words == sorted(words, reverse=True)
        ids = captions.sample_ids(image, count, np.random.default_rng(image))
        assert [len(sequence) - 2 for sequence in ids] == words
