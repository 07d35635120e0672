"""The plan of a study: matched decoder sizes, trials of learning rates, and one run per decoder and seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from captioning.comparison.sizes import DataShape, DecoderSize, data_shape, match_sizes
from captioning.comparison.study import StudyConfig, merge
from captioning.config import ExperimentConfig, parse, read_config
from captioning.errors import UserError
from captioning.utils.validation import dump

COMMON_SECTIONS = (
    "dataset",
    "encoder",
    "preprocessing",
    "features",
    "text",
    "vocabulary",
    "search",
    "phases",
)
"""Sections that must be equal for all systems of a study."""

COMMON_TRAINING = {
    "batches": ("batch_size", "captions_per_image", "max_tokens", "accumulate"),
    "budget": ("epochs", "validate_every", "patience", "metric"),
}
"""Settings of `training` that must be equal for all systems of a study."""

MAX_WIDENINGS = 4
"""Learning rates that may be added to those of a study for a decoder whose best rate is at their edge."""


class StudyRun(NamedTuple):
    """One training of a study."""

    system: str
    seed: int
    caption_length: int | None  # in words; None except in a length study
    config: ExperimentConfig


class Plan(NamedTuple):
    """A study with its decoder sizes and all runs; the runs' learning rates may still have to be searched."""

    study: StudyConfig
    shape: DataShape
    sizes: dict[str, DecoderSize]
    trials: list[StudyRun]  # one per system and learning rate
    runs: list[StudyRun]

    def as_json(self) -> dict[str, Any]:
        return {
            "study": dump(self.study),
            "shape": self.shape._asdict(),
            "sizes": {name: size._asdict() for name, size in self.sizes.items()},
        }


def make_plan(study: StudyConfig) -> Plan:
    """Match the decoders' sizes and list the runs. Reads the training captions; draws `shapes` if necessary.

    Raises:
        UserError: a setting is wrong, or a decoder cannot be made as large as the others.
    """
    base = read_config(study.base, allow_code=True).as_json()
    configs = {name: _experiment(study, base, name) for name in study.decoders}
    _check_comparable(study, configs)
    shape = data_shape(_with_caption_length(next(iter(configs.values())), study.search_length))
    sizes = match_sizes(study, configs, shape)
    configs = {name: _experiment(study, base, name, size.decoder) for name, size in sizes.items()}
    runs = [
        _run(study, name, config, seed, length)
        for seed in study.seeds
        for length in study.lengths or (None,)
        for name, config in configs.items()
    ]
    trials = [
        _trial(study, name, config, rate) for name, config in configs.items() for rate in study.learning_rates
    ]
    return Plan(study, shape, sizes, trials, runs)


def _check_comparable(study: StudyConfig, configs: Mapping[str, ExperimentConfig]) -> None:
    first = next(iter(configs.values()))
    if study.lengths and (first.vocabulary.kind != "words" or first.text.tokenizer == "characters"):
        raise UserError(
            f"study {study.name}: a study of caption lengths asks which name comes last, so names must be single "
            "tokens; use vocabulary.kind=words and text.tokenizer=ptb"
        )
    for name, config in configs.items():
        for section in COMMON_SECTIONS:
            if getattr(config, section) != getattr(first, section):
                raise UserError(
                    f"study {study.name}: {name} has another {section} than the rest; use the same for all systems"
                )
        for same, keys in COMMON_TRAINING.items():
            for key in keys:
                if getattr(config.training, key) != getattr(first.training, key):
                    raise UserError(
                        f"study {study.name}: {name} has another training.{key} than the rest; use the same {same}"
                    )


def _run(study: StudyConfig, name: str, config: ExperimentConfig, seed: int, length: int | None) -> StudyRun:
    folder = f"{name}-words{length}-seed{seed}" if length else f"{name}-seed{seed}"
    config = replace(_with_caption_length(config, length), name=folder, seed=seed)
    if length is not None and length in study.length_epochs:
        epochs = study.length_epochs[length]
        validate_every = min(epochs, config.training.validate_every)
        config = replace(
            config, training=replace(config.training, epochs=epochs, validate_every=validate_every)
        )
    return StudyRun(name, seed, length, config)


def _trial(study: StudyConfig, name: str, config: ExperimentConfig, rate: float) -> StudyRun:
    config = replace(
        _with_caption_length(config, study.search_length),
        name=f"{name}-rate{rate:g}",
        runs=str(study.folder / "rates"),
        seed=study.seeds[0],
        training=replace(
            config.training,
            epochs=study.search_epochs,
            validate_every=study.search_epochs,
            learning_rate=rate,
        ),
    )
    return StudyRun(name, config.seed, study.search_length, config)


def next_rate(scores: Mapping[float, float | None], *, higher_is_better: bool) -> float | None:
    """A learning rate beyond the edge of those tried, if the best of them is the lowest or the highest.

    The distance to the edge is that between the edge and its neighbour, as a ratio.

    Args:
        scores: by learning rate; None if the training diverged.
    """
    finite = {rate: score for rate, score in scores.items() if score is not None}
    if len(scores) < 2 or not finite:
        return None
    best = (max if higher_is_better else min)(finite, key=lambda rate: finite[rate])
    tried = sorted(scores)
    for edge, neighbour in ((tried[0], tried[1]), (tried[-1], tried[-2])):
        if best == edge:
            return float(f"{edge * edge / neighbour:.3g}")
    return None


def trial_with_rate(trial: StudyRun, rate: float) -> StudyRun:
    """The same trial with another learning rate."""
    training = replace(trial.config.training, learning_rate=rate)
    return trial._replace(
        config=replace(trial.config, name=f"{trial.system}-rate{rate:g}", training=training)
    )


def _experiment(
    study: StudyConfig, base: Mapping[str, Any], name: str, decoder: Mapping[str, Any] | None = None
) -> ExperimentConfig:
    system = study.decoders[name]
    values = merge(base, {"tracking": {"group": study.name}})
    values = merge(values, study.overrides)
    values = merge(values, system.overrides)
    values |= {"decoder": dict(decoder or system.decoder), "name": name, "runs": str(study.folder)}
    return parse(values, where=f"study {study.name}, decoder {name}", allow_code=True)


def _with_caption_length(config: ExperimentConfig, words: int | None) -> ExperimentConfig:
    if words is None:
        return config
    return replace(config, dataset=config.dataset.with_caption_length(words))  # type: ignore[arg-type]


def describe_plan(plan: Plan, states: Mapping[str, str]) -> list[str]:
    """The plan as printed lines.

    Args:
        states: "new", "begun" or "trained" by the run's name.
    """
    study, shape = plan.study, plan.shape
    matched = "not matched" if study.match is None else f"matched by {study.match.by} to {study.match.target}"
    lengths = f" x lengths {', '.join(map(str, study.lengths))}" if study.lengths else ""
    lines = [
        f"study {study.name}: {len(plan.sizes)} decoders x {len(study.seeds)} seeds{lengths}, {matched}; reported on "
        f"{study.split}; in {study.folder}",
        f"{shape.regions} regions of {shape.channels} channels, {shape.vocabulary:,} words, captions of {shape.words} "
        "words on average including <end>",
        "",
        f"{'decoder':<20}{'parameters':>12}{'MFLOP a caption':>18}{'scaled by':>11}   sizes",
        *(
            f"{name:<20}{size.parameters:>12,}{size.flops / 1e6:>18.1f}{size.factor:>11.3f}   {size.widths}"
            for name, size in plan.sizes.items()
        ),
        "",
    ]
    if plan.trials:
        rates = ", ".join(f"{rate:g}" for rate in study.learning_rates)
        lines.append(
            f"learning rates {rates}: {len(plan.trials)} trials of {study.search_epochs} epochs, seed {study.seeds[0]}"
        )
        if len(study.learning_rates) > 1:
            lines.append(
                f"a decoder whose best rate is the lowest or the highest gets further trials, at most {MAX_WIDENINGS}"
            )
    trained = sum(state == "trained" for state in states.values())
    lines.append(f"{len(plan.runs)} runs, {trained} trained already:")
    return lines + [f"  {name:<32}{state}" for name, state in states.items()]
