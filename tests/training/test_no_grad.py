"""Parts without gradient in a step under autocast take no gradient from the rest of it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from captioning.loaders.batches import TrainingBatches
from captioning.loaders.captions import EncodedCaptions
from captioning.training import TrainingConfig
from captioning.training.batch_stats import BatchStats
from captioning.training.config import ScheduledSamplingConfig, SelfCriticalConfig
from captioning.training.no_grad import no_grad
from captioning.training.objective import CrossEntropy
from captioning.training.rewards import References
from captioning.training.self_critical import SelfCritical
from tests.helpers.models import tiny_captioner
from tests.helpers.training import records


class OldCache:
    """A stand-in for autocast's cache before pytorch/pytorch#165068: the first cast of a weight serves all others."""

    def __init__(self, patch):
        self.cast, self.linear, self.calls = {}, F.linear, 0
        patch.setattr(F, "linear", self.cached_linear)
        patch.setattr(torch, "clear_autocast_cache", self.cast.clear)

    def cached_linear(self, x, weight, bias=None):
        if weight.is_leaf and weight.requires_grad:
            self.calls += 1
            weight = self.cast.setdefault(id(weight), weight * 1)
        return self.linear(x, weight, bias)


def gradients(kind, decoder):
    captioner = tiny_captioner(decoder)
    captions = EncodedCaptions.from_records(records(3), captioner.vocabulary, max_length=6)
    pixels = torch.randn(3, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    if kind == "scheduled_sampling":
        config = TrainingConfig(scheduled_sampling=ScheduledSamplingConfig(start=0.25))
        goal = CrossEntropy(captioner.train(), config)
    else:
        references = References(captions, vocabulary_size=len(captioner.vocabulary))
        settings = SelfCriticalConfig(baseline="greedy", bleu=1.0, max_length=6)
        goal = SelfCritical(captioner, settings, references, ids=range(3), seed=0)
    batch = TrainingBatches(
        range(3),
        captions,
        lambda numbers, epoch: pixels[numbers],
        captions_per_image=3,
        pad=0,
        seed=0,
        epoch=0,
    )[np.arange(3)]
    torch.manual_seed(0)
    torch.clear_autocast_cache()  # the helper that made the captioner ran the encoder without gradient
    with torch.autocast("cpu", torch.bfloat16):
        loss = goal(batch, BatchStats.of(batch, 0))
    loss.value.backward()
    return {name: parameter.grad for name, parameter in captioner.named_parameters()}


@pytest.mark.parametrize("decoder", ["lstm", "transformer", "up_down"])
@pytest.mark.parametrize("kind", ["scheduled_sampling", "self_critical"])
def test_weights_learn_although_they_were_cast_without_gradient(kind, decoder, monkeypatch):
    wanted = gradients(kind, decoder)
    assert any(gradient.any() for gradient in wanted.values() if gradient is not None)
    cache = OldCache(monkeypatch)
    found = gradients(kind, decoder)
    assert cache.calls
    for name, gradient in wanted.items():
        assert (found[name] is None) == (gradient is None), name
        if gradient is not None:  # the stand-in adds up gradients before they are cast back, in bfloat16
            assert (found[name] - gradient).norm() <= 0.02 * gradient.norm(), name


def test_the_stand_in_takes_gradients_where_nothing_clears_it(monkeypatch):
    layer, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    OldCache(monkeypatch)
    for without, learns in ((torch.no_grad, False), (no_grad, True)):
        torch.clear_autocast_cache()
        with without():
            layer(x)
        layer.zero_grad()
        layer(x).sum().backward()
        assert (layer.weight.grad is not None) == learns
