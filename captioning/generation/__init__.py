"""Caption generation with any `Decoder`: greedy, beam, diverse beam and stochastic beam search, and sampling.

A new search is one file with a subclass of `BaseSearchConfig`, and its name in `SearchConfig` below. A constraint
that combines with every search is a function in `processors`.
"""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from captioning.generation.base import BaseSearchConfig
from captioning.generation.beam import BeamConfig
from captioning.generation.constraint_ids import constraint_ids
from captioning.generation.diverse_beam import DiverseBeamConfig
from captioning.generation.greedy import GreedyConfig
from captioning.generation.microbatch import search_in_microbatches
from captioning.generation.prefill import prefill
from captioning.generation.processors import ConstraintIds
from captioning.generation.sampling import SampleConfig
from captioning.generation.stochastic_beam import StochasticBeamConfig
from captioning.models.decoders.base import Decoder
from captioning.tensors import Hypotheses
from captioning.text.vocabulary import SpecialTokens
from captioning.utils.validation import ByKind

SearchConfig = Annotated[
    GreedyConfig | BeamConfig | DiverseBeamConfig | SampleConfig | StochasticBeamConfig,
    ByKind(BaseSearchConfig),
]


def search(
    decoder: Decoder,
    memory: Any,
    config: SearchConfig,
    *,
    special: SpecialTokens,
    constraints: ConstraintIds | None = None,
    keys: Tensor | None = None,
) -> Hypotheses:
    """Captions of the B images of `memory`.

    The captions of an image depend neither on the other images of the batch nor on invalid regions.
    Log-probabilities are those of the decoder's full distribution: suppressed tokens are never chosen but keep
    their share, so `decoder.forward` gives the same log-probabilities for the returned ids.

    Args:
        decoder: in `eval()` mode, else dropout is applied. The caller chooses the gradient mode; nothing
            here needs gradients, so `torch.inference_mode()` is best.
        memory: `decoder.encode_memory(features)`.
        special: `vocabulary.special_tokens`.
        constraints: `constraint_ids(config, vocabulary)`; needed if `config` contains words.
        keys: (B,) int64 of a random search: an image with the same key and seed has the same captions in
            every batch. None: its row in the batch, 0 to B - 1.

    Returns:
        Hypotheses, R per image: finished captions first, by score, then those cut off by the length limit.
        Where fewer than R exist, the rest is empty: no ids, length 0, `logprob` and `scores` minus infinity.

    Raises:
        UserError: the decoder's logits are NaN or infinite.
        ValueError: ids outside the vocabulary; `config` contains words, but `constraints` is None.
    """

    def run(decoder: Decoder, memory: Any, keys: Tensor | None) -> Hypotheses:
        return config.run(
            prefill(decoder, memory, config, special=special, constraints=constraints, keys=keys)
        )

    return search_in_microbatches(run, decoder, memory, num_sequences=config.num_sequences, keys=keys)


__all__ = [
    "BaseSearchConfig",
    "BeamConfig",
    "ConstraintIds",
    "DiverseBeamConfig",
    "GreedyConfig",
    "SampleConfig",
    "SearchConfig",
    "StochasticBeamConfig",
    "constraint_ids",
    "search",
]
