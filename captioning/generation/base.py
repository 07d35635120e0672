"""Options that the searches share, and the interface of a search."""

from __future__ import annotations

import abc
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field

from captioning.generation.scores import LengthRule, length_score
from captioning.tensors import Hypotheses

if TYPE_CHECKING:
    from torch import Tensor

    from captioning.generation.prefill import Prefill

Texts = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]
"""A list of words or phrases; a single one may be written without brackets."""


@dataclass(frozen=True, kw_only=True)
class BaseSearchConfig(abc.ABC):
    """The options of every search. Text is tokenized as captions are (`constraint_ids`).

    Attributes:
        max_length: maximum number of tokens of a caption, including `<end>`.
        min_length: minimum number of words before `<end>`; with `min_length == max_length` every caption has
            exactly that many words.
        prefix: the first words of every caption ("a photo of"). They count towards lengths and
            log-probabilities.
        forced: words or phrases that every caption contains. Beam search reserves places for hypotheses
            with more of them (`constraints.dynamic_beam_allocation`). The other searches choose as usual,
            may not end before all phrases occur, and insert missing ones as late as the length allows.
        banned: words that are never generated.
        no_repeat: no n-gram of this size occurs twice, except in the prefix and the forced phrases; 0: off.
        no_bad_ending: no caption ends with an article, a preposition or the like (`metrics.BAD_ENDINGS`).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    kind: str
    max_length: Annotated[int, Field(ge=1, le=10_000)] = 20
    min_length: Annotated[int, Field(ge=0, le=10_000)] = 1
    prefix: str = ""
    forced: Texts = ()
    banned: Texts = ()
    no_repeat: Annotated[int, Field(ge=0)] = 0
    no_bad_ending: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_length <= self.max_length or self.max_length < 1:
            raise ValueError(
                "min_length must be from 0 to max_length, and max_length at least 1, "
                f"got {self.min_length} and {self.max_length}"
            )

    @property
    def needs_ids(self) -> bool:
        """Whether an option contains words, so that the search needs their ids."""
        return bool(self.prefix or self.forced or self.banned or self.no_bad_ending)

    @property
    @abc.abstractmethod
    def num_sequences(self) -> int:
        """Maximum number of sequences of an image that the decoder processes at once."""

    @property
    def num_initial(self) -> int:
        """Number of sequences of an image at the first step."""
        return 1

    @abc.abstractmethod
    def with_n_best(self, n_best: int) -> BaseSearchConfig:
        """A config that returns `n_best` captions of each image, wider where necessary."""

    @abc.abstractmethod
    def score(self, logprob: Tensor, length: int | Tensor) -> Tensor:
        """The score by which captions are ranked."""

    @abc.abstractmethod
    def run(self, prefill: Prefill) -> Hypotheses:
        """The search itself. Call it as `captioning.generation.search`."""


@dataclass(frozen=True, kw_only=True)
class RankedSearchConfig(BaseSearchConfig):
    """The options of a search that compares captions of different lengths.

    Attributes:
        length_rule: the score of a caption: the sum of its log-probabilities ("sum"), their mean ("mean"), or
            the length penalty of GNMT ("gnmt", the only one with `alpha`). See `scores.length_score`.
    """

    length_rule: LengthRule = "mean"
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.6

    def score(self, logprob: Tensor, length: int | Tensor) -> Tensor:
        return length_score(logprob, length, self.length_rule, self.alpha)


@dataclass(frozen=True, kw_only=True)
class BeamSearchConfig(RankedSearchConfig):
    """The options of a beam search.

    Attributes:
        width: number of active hypotheses of an image.
        n_best: number of captions returned, best first.
        patience: an image is done when `width * patience` hypotheses have finished (Kasai et al. 2022; most
            implementations use 1). null: only when no active hypothesis can still rank among the best
            `n_best`, or at `max_length`.
    """

    width: Annotated[int, Field(ge=1, le=10_000)] = 5
    n_best: Annotated[int, Field(ge=1, le=10_000)] = 1
    patience: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_best <= self.width:
            raise ValueError(f"n_best must be from 1 to width, got {self.n_best} and {self.width}")

    @property
    def num_sequences(self) -> int:
        return self.width


def option_names(kind: type[Any]) -> list[str]:
    """The option names of a search."""
    return [field.name for field in fields(kind) if field.name != "kind"]


def shared_options(config: BaseSearchConfig, kind: type[Any]) -> dict[str, Any]:
    """The options of `config` that every search of another kind has: lengths, length rule, constraints."""
    ranked = issubclass(kind, RankedSearchConfig) and isinstance(config, RankedSearchConfig)
    return {
        name: getattr(config, name)
        for name in option_names(RankedSearchConfig if ranked else BaseSearchConfig)
    }
