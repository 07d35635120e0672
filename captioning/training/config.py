"""The settings of a training run, each default once. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from captioning.training.schedule import ConstantConfig, CosineConfig, StepConfig

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
ScheduleConfig = Annotated[ConstantConfig | CosineConfig | StepConfig, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained.

    A batch is `images` images with `captions` captions each (fewer are padded, of more a new draw is made
    each epoch); the images' features are computed and remembered once. `average` is the decay per step of an
    exponential moving average of the weights, which is then what is validated and saved (0: none).
    `doubly_stochastic` is lambda of Xu et al. 2015, eq. 14, on the mean over captions and regions.
    `patience` counts validations without a better `metric`; `clip` is a gradient norm.
    """

    __pydantic_config__ = {"extra": "forbid"}
    epochs: Count = 20
    images: Count = 16
    captions: Count = 5
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: NotNegative = 0.0
    clip: NotNegative = 5.0
    schedule: ScheduleConfig = field(default_factory=CosineConfig)
    label_smoothing: Share = 0.1
    doubly_stochastic: NotNegative = 0.0
    average: Share = 0.0
    metric: Literal["CIDEr-D", "CIDEr", "Bleu_4", "Bleu_1", "ROUGE_L"] = "CIDEr-D"
    validate_every: Count = 1
    patience: Count = 5
    validation_images: Count = 50
    samples: Annotated[int, Field(ge=0)] = 8
    workers: Annotated[int, Field(ge=0)] = 0
    log_every: Count = 50
