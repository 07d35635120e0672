"""Losses against formulas, loops and torch."""

import pytest
import torch
from torch.nn import functional as F

from captioning.training.losses import cross_entropy, divergence, doubly_stochastic


def test_cross_entropy_against_the_formula():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 11, dtype=torch.double), torch.tensor([1, 0, 10, 4, 4])
    logprob = torch.log(torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True))
    wanted = -sum(0.9 * logprob[i, t] + 0.1 * logprob[i].mean() for i, t in enumerate(targets))
    torch.testing.assert_close(cross_entropy(logits, targets, smoothing=0.1), wanted)


def test_smoothing_leaves_out_what_is_never_generated():
    """Against F.cross_entropy with the whole target distribution; one target is itself left out."""
    start, targets, left_out = (
        torch.randn(5, 11, dtype=torch.double),
        torch.tensor([2, 3, 10, 4, 4]),
        (0, 1, 3),
    )
    weights = torch.tensor([0.5, 0.2, 2.0, 1.0, 3.0]).double()
    distribution = torch.zeros(5, 11, dtype=torch.double)
    for row, target in enumerate(targets.tolist()):
        for word in range(11):
            distribution[row, word] = 0.9 * (word == target) + (word not in left_out) * 0.1 / 8
    torch.testing.assert_close(distribution.sum(1), torch.ones(5, dtype=torch.double))
    values, gradients = [], []
    for way in (
        lambda x: cross_entropy(x, targets, smoothing=0.1, suppress_ids=left_out, weights=weights),
        lambda x: weights @ F.cross_entropy(x, distribution, reduction="none"),
    ):
        logits = start.clone().requires_grad_()
        value = way(logits)
        (0.7 * value).backward()
        values.append(value.detach())
        gradients.append(logits.grad)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_gradients_equal_torch(smoothing):
    torch.manual_seed(0)
    targets = torch.tensor([1, 0, 10, 4, 4])
    gradients = []
    for way in (
        lambda x: cross_entropy(x, targets, smoothing=smoothing),
        lambda x: F.cross_entropy(x, targets, label_smoothing=smoothing, reduction="sum"),
    ):
        logits = torch.randn(
            5, 11, dtype=torch.double, generator=torch.Generator().manual_seed(3)
        ).requires_grad_()
        (0.7 * way(logits)).backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_cross_entropy_equals_torch(smoothing):
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(5, 11, dtype=torch.double, generator=generator)
    weights, targets = torch.tensor([0.5, 0.0, 2.0, 1.0, 3.0]).double(), torch.tensor([1, 0, 10, 4, 4])
    values, gradients = [], []
    for way in (
        lambda x: cross_entropy(x, targets, smoothing=smoothing, weights=weights),
        lambda x: weights @ F.cross_entropy(x, targets, label_smoothing=smoothing, reduction="none"),
    ):
        logits = start.clone().requires_grad_()
        value = way(logits)
        (0.7 * value).backward()
        values.append(value.detach())
        gradients.append(logits.grad)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_divergence_is_the_mean_of_both_directions():
    torch.manual_seed(0)
    one, other = torch.randn(2, 5, 11, dtype=torch.double)
    p, q = torch.softmax(one, -1), torch.softmax(other, -1)
    wanted = sum(
        (a * (a / b).log() + b * (b / a).log()) / 2 for a, b in zip(p.flatten(), q.flatten(), strict=True)
    )
    torch.testing.assert_close(divergence(one, other), wanted)
    assert divergence(one, one) == 0


def test_doubly_stochastic_against_a_plain_loop():
    torch.manual_seed(0)
    attention = torch.softmax(torch.randn(2, 3, 5, 7, dtype=torch.double), -1)
    lengths = [[5, 2, 0], [4, 4, 1]]
    counts = torch.tensor([[[t < n for t in range(5)] for n in row] for row in lengths])
    parts = []
    for b, row in enumerate(lengths):
        for k, length in enumerate(row):
            if length:
                total = attention[b, k, :length].sum(0)
                parts.append(((1 - total) ** 2).mean())
    torch.testing.assert_close(doubly_stochastic(attention, counts, None), sum(parts))
