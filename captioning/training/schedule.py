"""Learning rate schedules: the factor of the learning rate as a function of step and validation scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Steps = Annotated[int, Field(ge=0)]


def _warmup_factor(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


@dataclass(frozen=True, kw_only=True)
class ConstantConfig:
    """Constant after `warmup` steps of linear increase."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["constant"] = "constant"
    warmup: Steps = 0

    def factor(self, step: int, *, steps_per_epoch: int, epochs: int, scores: Sequence[float] = ()) -> float:
        return _warmup_factor(step, self.warmup)


@dataclass(frozen=True, kw_only=True)
class CosineConfig:
    """Half a cosine from 1 to `final` at the last step (Loshchilov and Hutter 2017)."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["cosine"] = "cosine"
    warmup: Steps = 200
    final: Annotated[float, Field(ge=0, le=1)] = 0.02

    def factor(self, step: int, *, steps_per_epoch: int, epochs: int, scores: Sequence[float] = ()) -> float:
        done = min(1.0, max(0, step - self.warmup) / max(1, steps_per_epoch * epochs - self.warmup))
        cosine = self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2
        return _warmup_factor(step, self.warmup) * cosine


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Multiplied by `decay` after every `every` epochs."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["step"] = "step"
    warmup: Steps = 0
    every: Annotated[int, Field(ge=1)] = 3
    decay: Annotated[float, Field(gt=0, le=1)] = 0.8

    def factor(self, step: int, *, steps_per_epoch: int, epochs: int, scores: Sequence[float] = ()) -> float:
        return _warmup_factor(step, self.warmup) * self.decay ** (step // (steps_per_epoch * self.every))


@dataclass(frozen=True, kw_only=True)
class NoamConfig:
    """Linear increase for `warmup` steps, then decay with the square root of the step (Vaswani et al. 2017, eq. 3).

    Scaled so that the highest rate, at the last warmup step, is `learning_rate`.
    """

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["noam"] = "noam"
    warmup: Annotated[int, Field(ge=1)] = 10000

    def factor(self, step: int, *, steps_per_epoch: int, epochs: int, scores: Sequence[float] = ()) -> float:
        return min((step + 1) / self.warmup, math.sqrt(self.warmup / (step + 1)))


@dataclass(frozen=True, kw_only=True)
class PlateauConfig:
    """Multiplied by `decay` whenever `stale` validations in a row brought no better score."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["plateau"] = "plateau"
    warmup: Steps = 0
    stale: Annotated[int, Field(ge=1)] = 3
    decay: Annotated[float, Field(gt=0, le=1)] = 0.8

    def factor(self, step: int, *, steps_per_epoch: int, epochs: int, scores: Sequence[float] = ()) -> float:
        best, stale, drops = -math.inf, 0, 0
        for score in scores:
            best, stale = (score, 0) if score > best else (best, stale + 1)
            if stale == self.stale:
                drops, stale = drops + 1, 0
        return _warmup_factor(step, self.warmup) * self.decay**drops
