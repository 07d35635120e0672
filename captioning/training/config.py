"""The settings of a training run, each default once. Knows no model."""

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
class ScheduledSamplingConfig:
    """How often a word that is read is the model's own (Bengio et al. 2015), the epochs of a phase counted.

    The defaults are those of Rennie et al. 2017: 0.05 more each 5 epochs, up to 0.25.

    Attributes:
        start: the probability in the first epochs.
        increase: what it rises by after each `every` epochs, up to `most`.
        passes: readings of the caption before the one that is learned from, see `own_words`. 1: own words are
            chosen behind the caption's (Mihaylova and Martins 2019); more: behind own words too (Duckworth et
            al. 2019), as many as a caption has words being a choice word by word.
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
        """In the phase's epoch number `epoch`, from 0."""
        return min(self.most, self.start + self.increase * (epoch // self.every))


@dataclass(frozen=True, kw_only=True)
class ConsensusConfig:
    """A caption weighs what it has in common with the image's others (Phan et al. 2017).

    Attributes:
        strength: from 0, where all captions weigh the same, to 1, where the weight is proportional to the
            caption's CIDEr-D beside the others, as in the paper, and one alone in what it says weighs nothing.
    """

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["consensus"] = "consensus"
    strength: Annotated[float, Field(gt=0, le=1)] = 1.0


@dataclass(frozen=True, kw_only=True)
class FrequencyConfig:
    """A word weighs its count in the training captions to the power of -`power`: 1 makes all words matter alike."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["frequency"] = "frequency"
    power: Annotated[float, Field(gt=0, le=1)] = 0.5


@dataclass(frozen=True, kw_only=True)
class EffectiveNumberConfig:
    """A word seen n times weighs (1 - beta) / (1 - beta^n) (Cui et al. 2019)."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["effective_number"] = "effective_number"
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.999


WordWeightsConfig = Annotated[FrequencyConfig | EffectiveNumberConfig, ByKind()]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained: one phase of it.

    Attributes:
        batch_size, captions_per_image: images in a batch, and captions of each image. Images with fewer captions are
            padded; of images with more, each epoch draws anew. An image's features are computed once.
        max_tokens: fill batches up to that many tokens instead, padding included (see `token_batches`);
            `batch_size` is ignored then.
        accumulate: batches whose gradients are summed into one update, which is then that of one large batch.
        grad_clip_norm, grad_clip_value: most that the gradient's norm, and each number of it, may be (0: any).
        precision: what matrix products are computed in, where autocast knows the device; fp16 with a scaler.
        compile: the forward pass of a decoder that reads all words at once by torch.compile. On a CPU it took minutes
            to begin and was no faster; not measured on a GPU. A resumed run is then equal but for rounding. Of
            cross-entropy alone.
        self_critical: train by reward; null: by cross-entropy.
        label_smoothing, doubly_stochastic: of cross-entropy alone; the second is lambda of Xu et al. 2015, eq. 14,
            on the mean over captions and regions.
        caption_weights, word_weights: of cross-entropy alone; weights of its parts, 1 in the mean over the training
            split's tokens (null: all 1).
        r_drop: alpha of R-Drop (Liang et al. 2021): each caption is read twice, with dropout of its own, and the two
            distributions are drawn together (0: once). Of cross-entropy alone.
        embedding_dropout: share of the vocabulary whose embeddings are zero in an update (Gal and Ghahramani 2016),
            drawn anew each batch, as Merity et al. 2018 do. Of cross-entropy alone.
        scheduled_sampling: read some of the model's own words; null: those of the captions. Of cross-entropy alone.
        ema_decay: decay a step of an exponential moving average of the weights, which is then what is
            validated and saved (0: none).
        patience: validations without a better `metric` before a phase ends.
        save_every: updates between checkpoints within an epoch (null: only at its end).
        keep: checkpoints kept, the last and those before it.
        max_nonfinite_steps: updates in a row without a finite gradient before the run stops; fewer are skipped.
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
        unread = [name for name in OF_CROSS_ENTROPY if getattr(self, name)]
        if self.self_critical and unread:
            raise ValueError(f"{unread[0]} is of cross-entropy; leave it out where self_critical is set")
        if self.compile and self.embedding_dropout:
            raise ValueError("compile needs embeddings that stay; leave out embedding_dropout")


OF_CROSS_ENTROPY = (
    "caption_weights",
    "word_weights",
    "r_drop",
    "embedding_dropout",
    "scheduled_sampling",
    "compile",
)
"""Settings that self-critical training would not read."""
