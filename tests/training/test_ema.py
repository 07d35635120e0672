"""The moving average of the weights."""

import torch

from captioning.training.ema import EMA


def test_averaged_weights_are_applied_only_inside_the_block():
    module = torch.nn.Linear(3, 2)
    average = EMA(module, 0.9)
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(1.0)
    average.update(10**6)
    with average.applied():
        torch.testing.assert_close(module.weight, before + 0.1)
    torch.testing.assert_close(module.weight, before + 1.0)
    with torch.no_grad():
        module.weight.add_(1.0)
    average.update(10**6)
    with average.applied():
        torch.testing.assert_close(module.weight, 0.9 * (before + 0.1) + 0.1 * (before + 2.0))
