"""Greedy decoding chooses the most likely allowed word at every step."""

import math

import pytest
import torch

from captioning.generation import GreedyConfig
from tests.helpers.searching import (
    END,
    FEW,
    SUPPRESSED,
    make,
    one,
    read,
    run,
    scene,
)

a_few_decoders = pytest.mark.parametrize("name", FEW)


@a_few_decoders
def test_greedy_takes_the_likeliest_wanted_word_each_time(name):
    decoder, features = make(name, seed=2, end=1.0), scene(7, seed=2)
    found = run(decoder, features, GreedyConfig(min_length=2, max_length=7))
    assert len({tuple(words) for words in found.ids[:, 0].tolist()}) > 1
    for image in range(7):
        words = []
        while len(words) < 7 and END not in words:
            logprob = read(decoder, one(features, image), torch.tensor([[words]], dtype=torch.int64))[
                0, 0, -1
            ]
            logprob[[*SUPPRESSED, *([END] if len(words) < 2 else [])]] = -math.inf
            words.append(int(logprob.argmax()))
        assert found.ids[image, 0, : len(words)].tolist() == words
        assert found.lengths[image, 0] == len(words)
