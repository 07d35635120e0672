"""Microbatches give the captions of one large batch."""

import itertools

import pytest
import torch

from captioning.generation import microbatch
from tests.helpers.searching import (
    ONE_OF_EACH,
    make,
    run,
    scene,
)

each_search = pytest.mark.parametrize("config", ONE_OF_EACH, ids=lambda config: config.kind)


@each_search
@pytest.mark.parametrize("name", ["transformer", "meshed_memory"])
def test_a_few_images_at_a_time_have_the_captions_that_all_at_once_have(name, config, monkeypatch):
    stepped, differ = [], False
    kind = type(make(name))
    step = kind.step

    def watched(self, words, state, memory):
        stepped.append(words.shape)
        return step(self, words, state, memory)

    monkeypatch.setattr(kind, "step", watched)
    for seed, end in itertools.product((2, 4, 5), (2.0, 3.0, 4.0)):
        decoder, features = make(name, seed=seed, end=end), scene(5, seed=seed)
        features = features._replace(mask=torch.arange(3) < torch.tensor([3, 1, 2, 3, 2])[:, None])
        with monkeypatch.context() as patched:
            patched.setattr(microbatch, "ROWS", 5 * config.num_sequences)
            whole = run(decoder, features, config)
        assert {images for images, _ in stepped} == {5}
        stepped.clear()
        with monkeypatch.context() as patched:
            patched.setattr(microbatch, "ROWS", 2 * config.num_sequences)
            found = run(decoder, features, config)
        assert {images for images, _ in stepped} == {1, 2}
        assert max(width for _, width in stepped) <= config.num_sequences
        stepped.clear()
        for part, other in zip(found, whole, strict=True):
            torch.testing.assert_close(part, other)
        lengths = whole.lengths.amax(1).tolist()
        differ |= len({max(lengths[:2]), max(lengths[2:4]), lengths[4]}) > 1
    assert differ  # parts were as long as one another each time: nothing was seen of how they are joined
