"""Learning rate schedules: pure functions of the step and of what validation has shown. They know no optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

SequenceOutput = Annotated[int, Field(ge=0)]


def _warmed(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


@dataclass(frozen=True, kw_only=True)
class ConstantConfig:
    """The full rate after `warmup` steps of linear rise."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["constant"] = "constant"
    warmup: SequenceOutput = 0

    def factor(self, step: int, *, steps_per_epoch: int, epochs: int, scores: Sequence[float] = ()) -> float:
        return _warmed(step, self.warmup)


@dataclass(frozen=True, kw_only=True)
class CosineConfig:
    """Half a cosine from the full rate down to `final` of it at the last step (Loshchilov and Hutter 2017)."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["cosine"] = "cosine"
    warmup: SequenceOutput = 200
    final: Annotated[float, Field(ge=0, le=1)] = 0.02

    def factor(self, step: int, *, steps_per_epoch: int, epochs: int, scores: Sequence[float] = ()) -> float:
        done = min(1.0, max(0, step - self.warmup) / max(1, steps_per_epoch * epochs - self.warmup))
        return _warmed(step, self.warmup) * (
            self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2
        )


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """The rate times `decay` after each `every` epochs."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["step"] = "step"
    warmup: SequenceOutput = 0
    every: Annotated[int, Field(ge=1)] = 3
    decay: Annotated[float, Field(gt=0, le=1)] = 0.8

    def factor(self, step: int, *, steps_per_epoch: int, epochs: int, scores: Sequence[float] = ()) -> float:
        return _warmed(step, self.warmup) * self.decay ** (step // (steps_per_epoch * self.every))


@dataclass(frozen=True, kw_only=True)
class NoamConfig:
    """Linear rise for `warmup` steps, then falling with the root of the step (Vaswani et al. 2017, eq. 3).

    Scaled so that the highest rate, at the last step of the rise, is the full one: `learning_rate` is that.
    """

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["noam"] = "noam"
    warmup: Annotated[int, Field(ge=1)] = 10000

    def factor(self, step: int, *, steps_per_epoch: int, epochs: int, scores: Sequence[float] = ()) -> float:
        return min((step + 1) / self.warmup, math.sqrt(self.warmup / (step + 1)))


@dataclass(frozen=True, kw_only=True)
class PlateauConfig:
    """The rate times `decay` whenever `stale` validations in a row brought no better score."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["plateau"] = "plateau"
    warmup: SequenceOutput = 0
    stale: Annotated[int, Field(ge=1)] = 3
    decay: Annotated[float, Field(gt=0, le=1)] = 0.8

    def factor(self, step: int, *, steps_per_epoch: int, epochs: int, scores: Sequence[float] = ()) -> float:
        best, waited, drops = -math.inf, 0, 0
        for score in scores:
            best, waited = (score, 0) if score > best else (best, waited + 1)
            if waited == self.stale:
                drops, waited = drops + 1, 0
        return _warmed(step, self.warmup) * self.decay**drops
