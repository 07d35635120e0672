"""Transformers word by word and head by head, from the papers' equations: what the decoders are tested against."""

import cmath
import math

import torch


def linear(w, name, x):
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def norm(w, name, x):
    """Ba et al. 2016, eq. 3."""
    mean = sum(x) / len(x)
    variance = sum((x - mean) ** 2) / len(x)
    return (x - mean) / torch.sqrt(variance + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(query, keys, values, heads):
    """Vaswani et al. 2017, eq. 1, of one query (H,) to S keys: (H,), and the heads' weights (heads, S)."""
    d = len(query) // heads
    out, weights = [], []
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        energy = torch.stack([query[part] @ key[part] for key in keys]) / math.sqrt(d)
        weight = torch.exp(energy) / torch.exp(energy).sum()
        out.append(sum(a * value[part] for a, value in zip(weight, values, strict=True)))
        weights.append(weight)
    return torch.cat(out), torch.stack(weights)


def sinusoid(place, size):
    """Vaswani et al. 2017, section 3.5."""
    row = [(math.cos if i % 2 else math.sin)(place / 10000 ** (2 * (i // 2) / size)) for i in range(size)]
    return torch.tensor(row, dtype=torch.float64)


def turned(x, place, heads):
    """Su et al. 2021, eq. 12: each pair of numbers is a complex one, multiplied by exp(i m theta)."""
    d = len(x) // heads
    out = []
    for i in range(0, len(x), 2):
        turn = cmath.exp(1j * place / 10000 ** ((i % d) / d))
        value = complex(x[i], x[i + 1]) * turn
        out += [value.real, value.imag]
    return torch.tensor(out, dtype=torch.float64)
