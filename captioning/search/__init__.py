"""Searches over any Decoder. They know ids, never words or pixels.

Adding one is a file, and its name in the union here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import Field

from captioning.decoders.base import Decoder
from captioning.search.beam import BeamConfig, beam
from captioning.search.greedy import GreedyConfig, greedy
from captioning.tensors import Hypotheses

SearchConfig = Annotated[GreedyConfig | BeamConfig, Field(discriminator="kind")]


def search(
    decoder: Decoder, memory: Any, config: SearchConfig, *, start: int, end: int, unwanted: Collection[int]
) -> Hypotheses:
    """Captions for the B images of `memory`, found in the way that `config` describes.

    Results of an image depend neither on the other images of the batch nor on regions that are not valid.
    A log-probability is that of the decoder's full distribution: unwanted words are never chosen, but keep
    their share, so that reading the words back through `decoder.forward` gives the same numbers.

    Args:
        decoder: in `eval()` mode, or dropout decides as well. The caller chooses the gradient mode:
            nothing here is worth differentiating, so `torch.inference_mode()`.
        memory: `decoder.remember(features)`.
        start, end: ids of `<start>` and `<end>`.
        unwanted: ids that are never produced, `<start>`, `<pad>` and `<unk>` among them.

    Returns:
        Hypotheses, R an image: best first, those that ended before those that the length limit cut off. Where
        fewer than R exist the rest is empty: no words, length 0, `logp` and `scores` minus infinity.

    Raises:
        UserError: the decoder's logits are NaN or infinite.
    """
    return config.search(decoder, memory, start=start, end=end, unwanted=unwanted)


__all__ = ["BeamConfig", "GreedyConfig", "SearchConfig", "beam", "greedy", "search"]
