"""The sentinel of adaptive attention."""

import torch

from tests.helpers.decoders import make, scene


def test_the_sentinel_weight_is_the_share_of_the_memory_in_the_mixture():
    """With regions of zeros only the sentinel's share of the mixture remains."""
    decoder = make("adaptive_attention")
    size = decoder.config.hidden
    features, ids = scene(2, 3, 5, 7)
    memory = decoder.encode_memory(features)
    memory = memory._replace(regions=torch.zeros_like(memory.regions))
    state = decoder.init_state(memory, 3)
    with torch.no_grad():
        decoder.hidden_proj.weight[4 * size :] = 0
        decoder.input_proj.weight[4 * size :] = 0
        decoder.input_proj.bias[4 * size :] = 1e3  # the sentinel's gate is open
        decoder.mean_proj.weight[4 * size :] = 0
    output, (hidden, cell) = decoder.step(ids[..., 0], state, memory)
    sentinel = output.gates[0].sentinel
    assert sentinel.shape == (2, 3) and 0 < sentinel.min() < sentinel.max() < 1
    torch.testing.assert_close(output.hidden - hidden, sentinel[..., None] * torch.tanh(cell))
