"""Settings of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from captioning.metrics import check_metric_name
from captioning.training.schedule import ConstantConfig, CosineConfig, NoamConfig, PlateauConfig, StepConfig
from captioning.utils.validation import ByKind

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
ScheduleConfig = Annotated[ConstantConfig | CosineConfig | StepConfig | NoamConfig | PlateauConfig, ByKind()]


@dataclass(frozen=True, kw_only=True)
class SelfCriticalConfig:
    """Sampled captions with a reward above the baseline become more probable (Rennie et al. 2017).

    Attributes:
        samples: sampled captions per image.
        baseline: the reward of the greedy caption (Rennie et al. 2017), or the mean of the image's other samples
            (Luo 2020), which needs no greedy search.
        cider, bleu: weights of CIDEr-D (0 to 10, as published) and of sentence BLEU-4 (0 to 1) in the reward; `<end>`
            counts as a word of captions and references.
        temperature: of the distribution that is sampled and trained. Choose it so that sampled captions score close
            to beam search (RESULTS.md).
        max_length: maximum number of words, `<end>` included.
    """

    __pydantic_config__ = {"extra": "forbid"}
    samples: Annotated[int, Field(ge=1, le=10_000)] = 5
    baseline: Literal["greedy", "mean"] = "mean"
    cider: NotNegative = 1.0
    bleu: NotNegative = 0.0
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    max_length: Annotated[int, Field(ge=2, le=10_000)] = 20

    def __post_init__(self) -> None:
        if self.baseline == "mean" and self.samples < 2:
            raise ValueError(f"baseline=mean needs at least 2 samples, got samples={self.samples}")
        if not self.cider and not self.bleu:
            raise ValueError("cider and bleu are both 0, so every reward is 0; set one of them")


@dataclass(frozen=True, kw_only=True)
class ScheduledSamplingConfig:
    """Probability that an input word is the model's own prediction (Bengio et al. 2015), by the epoch of the phase.

    The defaults are those of Rennie et al. 2017: 0.05 more every 5 epochs, up to 0.25.

    Attributes:
        start: the probability in the first epochs.
        increase: added after every `every` epochs, up to `most`.
        passes: forward passes that choose the predictions, see `mix_in_predictions`. With 1 they are conditioned on
            the caption's words (Mihaylova and Martins 2019), with more also on predictions (Duckworth et al. 2019);
            as many passes as a caption has words equal sampling word by word.
    """

    __pydantic_config__ = {"extra": "forbid"}
    start: Probability = 0.0
    increase: Probability = 0.05
    every: Count = 5
    most: Probability = 0.25
    passes: Count = 1

    def __post_init__(self) -> None:
        if self.start > self.most:
            raise ValueError(f"start cannot be above most, got {self.start} and {self.most}")

    def probability(self, epoch: int) -> float:
        """The probability in epoch number `epoch` of the phase, from 0."""
        return min(self.most, self.start + self.increase * (epoch // self.every))


@dataclass(frozen=True, kw_only=True)
class ConsensusConfig:
    """Captions are weighted by their agreement with the image's other captions (Phan et al. 2017).

    Attributes:
        strength: from 0, equal weights, to 1, weights proportional to the caption's CIDEr-D against the others, as in
            the paper; a caption that shares nothing with them then has weight 0.
    """

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["consensus"] = "consensus"
    strength: Annotated[float, Field(gt=0, le=1)] = 1.0


@dataclass(frozen=True, kw_only=True)
class FrequencyConfig:
    """A word's weight is its count in the training captions to the power of -`power`; with 1 all words weigh alike."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["frequency"] = "frequency"
    power: Annotated[float, Field(gt=0, le=1)] = 0.5


@dataclass(frozen=True, kw_only=True)
class EffectiveNumberConfig:
    """The weight of a word with count n is (1 - beta) / (1 - beta^n) (Cui et al. 2019)."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["effective_number"] = "effective_number"
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.999


WordWeightsConfig = Annotated[FrequencyConfig | EffectiveNumberConfig, ByKind()]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One phase of training. Options are off by default unless stated otherwise.

    Attributes:
        batch_size, captions_per_image: images in a batch, and captions of each image. Images with fewer captions are
            padded; from images with more, each epoch samples anew. An image is encoded once.
        max_tokens: fill batches up to this number of tokens, padding included (see `token_batches`), and ignore
            `batch_size`.
        accumulate: batches whose gradients are added up for one update, which equals that of one large batch.
        grad_clip_norm, grad_clip_value: limits of the gradient's norm and of its entries (0: no limit).
        precision: of the forward pass under autocast, on GPUs; fp16 uses loss scaling.
        compile: torch.compile for the forward pass of a decoder that runs all time steps in parallel. On a CPU it
            took minutes to compile and was no faster; on a GPU it was not measured. A resumed run then equals an
            uninterrupted one up to rounding. Cross-entropy only.
        self_critical: self-critical training; null: cross-entropy.
        label_smoothing: probability spread over all words but `<pad>`, `<start>` and `<unk>` (Szegedy et al. 2016).
            Cross-entropy only.
        doubly_stochastic: lambda of Xu et al. 2015, eq. 14, on the mean over captions and each image's regions.
            Cross-entropy only.
        caption_weights, word_weights: weights in the cross-entropy that average 1 over the training tokens (null:
            all 1).
        r_drop: alpha of R-Drop (Liang et al. 2021): two forward passes with different dropout whose distributions are
            pulled together (0: one pass), with weight 1 for every token. Cross-entropy only.
        embedding_dropout: probability that all embeddings of a word are zero in a batch (Gal and Ghahramani 2016), as
            in Merity et al. 2018. Cross-entropy only.
        scheduled_sampling: use some of the model's predictions as inputs; null: the captions' words. Cross-entropy
            only.
        ema_decay: decay per step of an exponential moving average of the weights, which is then validated and saved
            (0: none).
        metric: validation metric that selects the best model.
        patience: validations without a better `metric` before a phase ends.
        save_every: updates between checkpoints within an epoch (null: only at its end).
        keep: number of checkpoints kept.
        max_nonfinite_steps: updates in a row with a non-finite gradient that stop the run; fewer are skipped.
    """

    __pydantic_config__ = {"extra": "forbid"}
    epochs: Count = 20
    batch_size: Count = 16
    captions_per_image: Count = 5
    max_tokens: Count | None = None
    accumulate: Count = 1
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: NotNegative = 0.0
    grad_clip_norm: NotNegative = 5.0
    grad_clip_value: NotNegative = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    schedule: ScheduleConfig = field(default_factory=CosineConfig)
    self_critical: SelfCriticalConfig | None = None
    label_smoothing: Share = 0.1
    doubly_stochastic: NotNegative = 0.0
    caption_weights: ConsensusConfig | None = None
    word_weights: WordWeightsConfig | None = None
    r_drop: NotNegative = 0.0
    embedding_dropout: Share = 0.0
    scheduled_sampling: ScheduledSamplingConfig | None = None
    ema_decay: Share = 0.0
    metric: Annotated[str, AfterValidator(check_metric_name)] = "CIDEr-D"
    validate_every: Count = 1
    patience: Count = 5
    validation_images: Count = 50
    samples: Annotated[int, Field(ge=0)] = 8
    workers: Annotated[int, Field(ge=0)] = 0
    log_every: Count = 50
    save_every: Count | None = 1000
    keep: Count = 2
    max_nonfinite_steps: Count = 5

    def __post_init__(self) -> None:
        unused = [name for name in CROSS_ENTROPY_OPTIONS if getattr(self, name)]
        if self.self_critical and unused:
            raise ValueError(
                f"{unused[0]} is an option of cross-entropy; leave it out where self_critical is set"
            )
        if self.compile and self.embedding_dropout:
            raise ValueError("compile does not work with embedding_dropout; leave out one of them")


CROSS_ENTROPY_OPTIONS = (
    "caption_weights",
    "word_weights",
    "r_drop",
    "embedding_dropout",
    "scheduled_sampling",
    "compile",
)
"""Settings that self-critical training does not use."""
