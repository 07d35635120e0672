"""Running a study: search of learning rates, trainings, captions and scores. Finished work is never repeated."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import yaml

from captioning.comparison.plan import MAX_WIDENINGS, Plan, StudyRun, next_rate, trial_with_rate
from captioning.comparison.processes import Command, child_command, run_parallel
from captioning.comparison.systems import same_search
from captioning.config import ExperimentConfig, read_config
from captioning.errors import DIVERGED, UserError
from captioning.metrics import Metric, get_metric
from captioning.metrics.coco_names import read_signature
from captioning.training.checkpoint import latest, read_progress
from captioning.utils.files import recover_folder, sha256, write_json, write_text
from captioning.utils.locks import folder_lock
from captioning.utils.validation import differing_settings

Log = Callable[[str], None]


def run_study(plan: Plan, *, log: Log, command: Command | None = None, jobs: int = 1) -> dict[str, float]:
    """Do what is missing: trials of learning rates, trainings, captions and scores of the split.

    Interrupted work is resumed when this is called again.

    Args:
        command: runs `captioning train` and `captioning evaluate` (default: in child processes).
        jobs: trainings at a time, each with its share of the cores. With more than one, their output is only in
            their train.log.

    Returns:
        The learning rate of each system.

    Raises:
        UserError: a command failed, a run of that name has other settings, or another process is at work.
    """
    study = plan.study
    with folder_lock(study.folder, advice="wait until it has ended"):
        command = command or child_command(jobs)
        if any(run_state(run.config) != "trained" for run in plan.runs):
            write_json(study.folder / "plan.json", {**plan.as_json(), "jobs": jobs})
        rates = search_learning_rates(plan, command, log, jobs)

        def finish(number: int, run: StudyRun) -> None:
            config = with_learning_rate(run.config, rates.get(run.system))
            start = time.perf_counter()
            if _train(config, command, log, title=f"run {number} of {len(plan.runs)}"):
                log(f"{config.name}: trained in {(time.perf_counter() - start) / 60:.1f} minutes")
            _evaluate(config, study.split, command, log)

        tasks = [functools.partial(finish, number, run) for number, run in enumerate(plan.runs, 1)]
        run_parallel(jobs, tasks, description="runs", unit="run")
    return rates


def search_learning_rates(plan: Plan, command: Command, log: Log, jobs: int = 1) -> dict[str, float]:
    """Train the missing trials and return the best learning rate of each system.

    If a best rate is the lowest or the highest of those tried, rates beyond it are tried as well (`system_trials`).
    """

    def attempt(run: StudyRun) -> None:
        if not _divergence_file(run.config).is_file():
            title = f"learning rate {run.config.training.learning_rate:g} of {run.system}"
            _train(run.config, command, log, title=title, may_diverge=True)

    attempted: set[str] = set()
    while trials := [
        run for name in plan.sizes for run in system_trials(plan, name) if run.config.name not in attempted
    ]:
        tasks = [functools.partial(attempt, run) for run in trials]
        run_parallel(jobs, tasks, description="learning rates", unit="rate")
        attempted |= {run.config.name for run in trials}
    metric = _metric(plan)
    choose = max if metric.higher_is_better else min
    rates = {}
    for name, scores in learning_rate_scores(plan).items():
        finite = {rate: score for rate, score in scores.items() if score is not None}
        if not finite:
            raise UserError(
                f"study {plan.study.name}: {name} diverged with every rate; give lower learning_rates"
            )
        best = rates[name] = choose(finite, key=lambda rate: finite[rate])
        at_edge = next_rate(scores, higher_is_better=metric.higher_is_better) is not None
        log(
            f"{name}: learning rate {best:g} of {format_rates(scores, metric.scale)}"
            + (" - at the edge of the rates tried" if at_edge else "")
        )
    return rates


def system_trials(plan: Plan, name: str) -> list[StudyRun]:
    """A system's trials: those of the study and, after these, one beyond the edge that has the best rate, and so on."""
    trials = [run for run in plan.trials if run.system == name]
    for _ in range(MAX_WIDENINGS):
        scores = _trial_scores(trials)
        rate = next_rate(scores, higher_is_better=_metric(plan).higher_is_better)
        if len(scores) < len(trials) or rate is None:
            break
        trials.append(trial_with_rate(trials[0], rate))
    return trials


def _metric(plan: Plan) -> Metric:
    return get_metric(plan.runs[0].config.training.metric)


def learning_rate_scores(plan: Plan) -> dict[str, dict[float, float | None]]:
    """The best validation score of each finished trial, by system and learning rate; None if it diverged."""
    scores = {name: _trial_scores(system_trials(plan, name)) for name in plan.sizes}
    return {name: by_rate for name, by_rate in scores.items() if by_rate}


def _trial_scores(trials: Sequence[StudyRun]) -> dict[float, float | None]:
    scores: dict[float, float | None] = {}
    for run in trials:
        rate = run.config.training.learning_rate
        if _divergence_file(run.config).is_file():
            scores[rate] = None
        elif run_state(run.config) == "trained":
            scores[rate] = read_progress(latest(run.config.folder)).best
    return dict(sorted(scores.items()))


def format_rates(scores: Mapping[float, float | None], scale: float) -> str:
    """Learning rates with their validation scores."""
    return ", ".join(
        f"{rate:g} ({'diverged' if score is None else f'{scale * score:.1f}'})"
        for rate, score in scores.items()
    )


def with_learning_rate(config: ExperimentConfig, rate: float | None) -> ExperimentConfig:
    return config if rate is None else replace(config, training=replace(config.training, learning_rate=rate))


def run_state(config: ExperimentConfig) -> Literal["new", "begun", "trained"]:
    """How far a run has come. A folder without a complete checkpoint is new."""
    try:
        progress = read_progress(latest(config.folder))
    except UserError:
        return "new"
    done = progress.done and progress.phase == len(config.phases)
    return "trained" if done and (config.folder / "model" / "manifest.json").is_file() else "begun"


def run_states(plan: Plan) -> dict[str, str]:
    """`run_state` of every run, by its name."""
    return {run.config.name: run_state(run.config) for run in plan.runs}


def _divergence_file(config: ExperimentConfig) -> Path:
    return config.folder / "diverged.json"


def _train(
    config: ExperimentConfig, command: Command, log: Log, *, title: str, may_diverge: bool = False
) -> bool:
    """Train a run from its start or its last checkpoint; returns False if it was trained already."""
    state = run_state(config)
    if state != "new":
        _check_same_settings(config)
    if state == "trained":
        return False
    log(f"{title}: {config.folder} {'goes on' if state == 'begun' else 'begins'}")
    if state == "new":
        # left by a run that was killed before its first checkpoint was complete
        shutil.rmtree(config.folder / "checkpoints", ignore_errors=True)
    file = config.folder / "experiment.yaml"
    write_text(file, yaml.safe_dump(config.as_json(), sort_keys=False))
    code, message = command("train", str(file), *(["--resume"] if state == "begun" else []))
    if code == DIVERGED and may_diverge:
        write_json(_divergence_file(config), {"message": message.strip()})
        log(f"{config.name}: {message.strip()}")
    elif code:
        raise UserError(f"{config.folder}: training stopped with code {code}: {message.strip()[-500:]}")
    return True


def _check_same_settings(config: ExperimentConfig) -> None:
    """Raises UserError if the run's folder holds a run with other settings."""
    file = config.folder / "config.yaml"
    existing = read_config(file)
    if existing.fingerprint == config.fingerprint:
        return
    key, (before, now) = differing_settings(
        [existing.as_json(), config.as_json()], ignore=("name", "runs", "device", "tracking")
    )[0]
    raise UserError(
        f"{file}: this run was made with other settings ({key} {before!r}, now {now!r}); give the study another "
        "name, or delete that run's folder"
    )


def _evaluate(config: ExperimentConfig, split: str, command: Command, log: Log) -> None:
    if is_evaluated(config, split):
        return
    log(f"{config.name}: captions and scores of {split}")
    code, message = command("evaluate", str(config.folder), "--split", split, "--allow-code")
    if code:
        raise UserError(f"{config.folder}: evaluation stopped with code {code}: {message.strip()[-500:]}")


def is_evaluated(config: ExperimentConfig, split: str) -> bool:
    """Whether captions and scores of the split exist and belong to the run's current model and its search."""
    files = [config.folder / f"{kind}_{split}.json" for kind in ("predictions", "scores")]
    if not all(file.is_file() for file in files):
        return False
    signature = read_signature(files[1])
    model = recover_folder(config.folder / "model") / "manifest.json"
    return signature.get("model") == sha256(model)[:16] and same_search(
        signature.get("search"), config.as_json()["search"]
    )
