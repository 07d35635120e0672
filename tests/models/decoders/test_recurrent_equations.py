"""The recurrent decoders beside their papers' equations."""

import numpy as np
import pytest
import torch

from captioning.tensors import Features
from tests.helpers import plain_recurrent
from tests.helpers.decoders import CHANNELS, CONFIGS, RECURRENT, VOCABULARY, make

NAMES = [name for name in RECURRENT if hasattr(plain_recurrent, CONFIGS[name].kind)]


def test_the_seven_papers_are_covered():
    assert len({CONFIGS[name].kind for name in NAMES}) == 7


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_decoder_computes_its_equations(name):
    decoder = make(name)
    oracle, weights = getattr(plain_recurrent, decoder.config.kind), plain_recurrent.Weights(decoder)
    images, sequences, regions, length = 2, 3, 5, 7
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(images, regions, CHANNELS, generator=generator, dtype=torch.double)
    ids = torch.randint(VOCABULARY, (images, sequences, length), generator=generator)
    mask = torch.tensor([[True, False, True, True, True], [True, True, False, True, False]])
    for valid in (torch.ones_like(mask), mask):
        output = decoder(ids, decoder.encode_memory(Features(features, None if valid.all() else valid)))
        logits = decoder.logits(output.hidden)
        for image in range(images):
            image_regions = features[image][valid[image]].numpy()
            for k in range(sequences):
                steps = list(oracle(weights, decoder.config, image_regions, ids[image, k].tolist()))
                assert len(steps) == length
                for t, (expected, alpha) in enumerate(steps):
                    np.testing.assert_allclose(logits[image, k, t], expected, rtol=1e-9, atol=1e-9)
                    if alpha is None:
                        assert output.attention is None
                        continue
                    attention = output.attention[image, k, t]
                    np.testing.assert_allclose(attention[valid[image]], alpha, rtol=1e-9, atol=1e-12)
                    assert (attention[~valid[image]] == 0).all()
