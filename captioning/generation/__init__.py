"""Searches over any Decoder. They know ids, never words or pixels.

Adding one is a file, and its name in the union here; adding a rule that combines with all of them is a
function in `rules`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from torch import Tensor

from captioning.generation.beam import BeamConfig, beam
from captioning.generation.diverse_beam import DiverseBeamConfig, diverse_beam
from captioning.generation.greedy import GreedyConfig, greedy
from captioning.generation.microbatch import search_in_microbatches
from captioning.generation.processors import RuleIds
from captioning.generation.rule_words import rule_ids
from captioning.generation.sampling import SampleConfig, sample
from captioning.generation.stochastic_beam import StochasticBeamConfig, stochastic_beam
from captioning.models.decoders.base import Decoder
from captioning.tensors import Hypotheses
from captioning.utils.validation import ByKind

SearchConfig = Annotated[
    GreedyConfig | BeamConfig | DiverseBeamConfig | SampleConfig | StochasticBeamConfig,
    ByKind(),
]


def search(
    decoder: Decoder,
    memory: Any,
    config: SearchConfig,
    *,
    start: int,
    end: int,
    suppress_ids: Collection[int],
    ids: RuleIds | None = None,
    keys: Tensor | None = None,
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
        suppress_ids: ids that are never produced, `<start>`, `<pad>` and `<unk>` among them.
        ids: `rule_ids(config, vocabulary)`: the words that the config's rules name.
        keys: (B,) int64, what a random search tells images apart by: an image with the same key and seed has
            the same captions wherever it stands. None: its row in the batch, 0 to B - 1.

    Returns:
        Hypotheses, R an image: best first, those that ended before those that the length limit cut off. Where
        fewer than R exist the rest is empty: no words, length 0, `logprob` and `scores` minus infinity.

    Raises:
        UserError: the decoder's logits are NaN or infinite.
        ValueError: ids outside the vocabulary; words among the rules, but no ids.
    """

    def find(decoder: Decoder, memory: Any, keys: Tensor | None) -> Hypotheses:
        return config.search(
            decoder, memory, start=start, end=end, suppress_ids=suppress_ids, ids=ids, keys=keys
        )

    return search_in_microbatches(find, decoder, memory, live=config.live, keys=keys)


__all__ = [
    "BeamConfig",
    "DiverseBeamConfig",
    "GreedyConfig",
    "RuleIds",
    "SampleConfig",
    "SearchConfig",
    "StochasticBeamConfig",
    "beam",
    "diverse_beam",
    "greedy",
    "rule_ids",
    "sample",
    "search",
    "stochastic_beam",
]
