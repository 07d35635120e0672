"""The settings of a training run, each default once. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from captioning.training.schedule import ConstantConfig, CosineConfig, NoamConfig, PlateauConfig, StepConfig

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
ScheduleConfig = Annotated[
    ConstantConfig | CosineConfig | StepConfig | NoamConfig | PlateauConfig, Field(discriminator="kind")
]


@dataclass(frozen=True, kw_only=True)
class SelfCriticalConfig:
    """Captions are drawn from the model; those that score above a baseline become likelier (Rennie et al. 2017).

    Attributes:
        samples: captions drawn an image.
        baseline: the reward of the greedy caption (Rennie et al. 2017), or the mean of the image's other samples
            (Luo 2020), which costs no greedy search.
        cider, bleu: weights of CIDEr-D (0 to 10, as published) and of sentence BLEU-4 (0 to 1) in the reward;
            `<end>` is a word of captions and references.
        temperature: of the distribution that is drawn from and whose log-probabilities are trained. Samples should
            be worth about as much as what the search finds that is used in the end (RESULTS.md).
        max_length: most words of a caption, `<end>` counted.
    """

    __pydantic_config__ = {"extra": "forbid"}
    samples: Count = 5
    baseline: Literal["greedy", "mean"] = "mean"
    cider: NotNegative = 1.0
    bleu: NotNegative = 0.0
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    max_length: Annotated[int, Field(ge=2)] = 20

    def __post_init__(self) -> None:
        if self.baseline == "mean" and self.samples < 2:
            raise ValueError(f"the mean of the other samples takes two at least, got samples={self.samples}")
        if not self.cider and not self.bleu:
            raise ValueError("cider and bleu are both 0: there is nothing to reward")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained: one phase of it.

    Attributes:
        images, captions: a batch is `images` images with `captions` captions each (fewer are padded, of more
            a new draw is made each epoch); the images' features are computed and remembered once.
        accumulate: batches whose gradients are summed into one update, which is then that of one large batch.
        clip, clip_value: most that the gradient's norm, and each number of it, may be (0: any).
        precision: what matrix products are computed in, where autocast knows the device; fp16 with a scaler.
        self_critical: train by reward; null: by cross-entropy.
        label_smoothing, doubly_stochastic: of cross-entropy alone; the second is lambda of Xu et al. 2015, eq. 14,
            on the mean over captions and regions.
        average: decay a step of an exponential moving average of the weights, which is then what is
            validated and saved (0: none).
        patience: validations without a better `metric` before a phase ends.
        save_every: updates between checkpoints within an epoch (null: only at its end).
        keep: checkpoints kept, the last and those before it.
        bad_steps: updates in a row without a finite gradient before the run stops; fewer are skipped.
    """

    __pydantic_config__ = {"extra": "forbid"}
    epochs: Count = 20
    images: Count = 16
    captions: Count = 5
    accumulate: Count = 1
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: NotNegative = 0.0
    clip: NotNegative = 5.0
    clip_value: NotNegative = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    schedule: ScheduleConfig = field(default_factory=CosineConfig)
    self_critical: SelfCriticalConfig | None = None
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
    save_every: Count | None = 1000
    keep: Count = 2
    bad_steps: Count = 5
