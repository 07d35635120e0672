"""The key/value cache that hypotheses share, beside a plain one that holds every sequence's tokens."""

import pytest
import torch

from captioning.models.decoders import reorder_state
from captioning.models.decoders.base import tensors_of
from captioning.ops.kv_cache import KVCache


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_cache_holds_what_a_plain_one_would_and_no_more(seed, gradients):
    generator = torch.Generator().manual_seed(seed)
    images, size, sequences = 3, 2, 1
    cache = KVCache.empty(torch.zeros(0), images=images, num_sequences=1, size=size, layers=2)
    plain = torch.zeros(images, 1, 0, size)
    for step in range(11):
        with torch.set_grad_enabled(gradients):
            cache, allowed = cache.extend()
        new = torch.randn(images, sequences, size, generator=generator)
        with torch.set_grad_enabled(gradients):
            written = [cache.write(layer, new * (layer + 1), -new * (layer + 1)) for layer in range(2)]
        assert cache.length == step + 1
        assert allowed.shape == (images, 1, sequences, cache.num_tokens)
        assert written[1][0].shape[1] == cache.num_tokens
        assert (allowed.sum(-1) == step + 1).all()
        plain = torch.cat([plain, new[:, :, None]], 2)
        parents = torch.randint(sequences, (images, 5 if step else 4), generator=generator)
        cache, plain, sequences = (
            reorder_state(cache, parents),
            reorder_state(plain, parents),
            parents.shape[1],
        )
        for factor, layer in enumerate(cache.buffer.layers, 1):
            for image in range(images):
                index = cache.token_index[image]
                torch.testing.assert_close(layer[0, image, index], plain[image] * factor)
                torch.testing.assert_close(layer[1, image, index], -plain[image] * factor)
        assert cache.num_tokens == max(len(index.unique()) for index in cache.token_index)
        assert [tensor.shape[2] for tensor in list(tensors_of(cache))[1:]] == [cache.num_tokens] * 2


def test_memory_is_allocated_once_for_many_steps():
    with torch.no_grad():
        cache = KVCache.empty(torch.zeros(0), images=2, num_sequences=1, size=4, layers=2)
        cache = reorder_state(cache.extend()[0], torch.zeros(2, 3, dtype=torch.int64))
        addresses = set()
        for _ in range(20):  # every sequence goes on
            cache, _ = cache.extend()
            addresses.add(cache.buffer.layers[0].data_ptr())
            cache = reorder_state(cache, torch.arange(3).expand(2, 3))
    assert cache.num_tokens == 1 + 20 * 3 and len(addresses) == 1
