"""Transformers written token by token and head by head from the papers' equations, as an oracle for the decoders."""

import cmath
import math

import torch


def linear(weights, name, x):
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def norm(weights, name, x):
    """Ba et al. 2016, eq. 3."""
    mean = sum(x) / len(x)
    variance = sum((x - mean) ** 2) / len(x)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attention(query, keys, values, heads):
    """Vaswani et al. 2017, eq. 1, of one query (H,) to S keys: (H,), and the heads' weights (heads, S)."""
    d = len(query) // heads
    outputs, weights = [], []
    for head in range(heads):
        slice_ = slice(head * d, (head + 1) * d)
        scores = torch.stack([query[slice_] @ key[slice_] for key in keys]) / math.sqrt(d)
        weight = torch.exp(scores) / torch.exp(scores).sum()
        outputs.append(sum(a * value[slice_] for a, value in zip(weight, values, strict=True)))
        weights.append(weight)
    return torch.cat(outputs), torch.stack(weights)


def sinusoid(position, size):
    """Vaswani et al. 2017, section 3.5."""
    row = [(math.cos if i % 2 else math.sin)(position / 10000 ** (2 * (i // 2) / size)) for i in range(size)]
    return torch.tensor(row, dtype=torch.float64)


def rotated(x, position, heads):
    """Su et al. 2021, eq. 12: each pair of numbers is a complex one, multiplied by exp(i m theta)."""
    d = len(x) // heads
    out = []
    for i in range(0, len(x), 2):
        value = complex(x[i], x[i + 1]) * cmath.exp(1j * position / 10000 ** ((i % d) / d))
        out += [value.real, value.imag]
    return torch.tensor(out, dtype=torch.float64)
