"""`torch.no_grad` for the parts of a training step that run under autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """`torch.no_grad()` that leaves nothing in autocast's cache.

    Autocast keeps the weights that it has cast. In torch before pytorch/pytorch#165068 those cast without gradient
    were used again by the rest of the step, so that these weights received no gradient.
    """
    with torch.no_grad():
        yield
    torch.clear_autocast_cache()
