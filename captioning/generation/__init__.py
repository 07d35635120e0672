"""Caption generation with any `Decoder`: greedy, beam, diverse beam and stochastic beam search, and sampling.

A new search is one file with a subclass of `BaseSearchConfig`, and its name in `SearchConfig` below. A constraint
that combines with every search is a function in `processors`.
"""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

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
