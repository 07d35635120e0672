"""Reports on studies, on finished runs and on caption files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from captioning.comparison import length_claims, length_page, measurements, page, results
from captioning.comparison import systems as system_files
from captioning.comparison.document import Block
from captioning.comparison.length import name_agreement
from captioning.comparison.plan import MAX_WIDENINGS, Plan, StudyRun
from captioning.comparison.results import System
from captioning.comparison.runner import is_evaluated, learning_rate_scores
from captioning.config import ExperimentConfig
from captioning.errors import UserError
from captioning.metrics import NAMES, get_metric
from captioning.metrics.coco_names import read_scores
from captioning.records import read_results
from captioning.utils.files import read_json
from captioning.utils.validation import check_shape

Log = Callable[[str], None]


def report_study(plan: Plan, *, log: Log, speed: bool = True) -> Path:
    """Report on the runs of a study that are finished; returns the report's folder.

    Args:
        speed: measure speed and memory.

    Raises:
        UserError: no run has captions of the split yet.
    """
    study = plan.study
    done = [run for run in plan.runs if is_evaluated(run.config, study.split)]
    if not done:
        raise UserError(f"{study.folder}: no run has captions of {study.split} yet; run the study first")
    caption_length = study.search_length if study.lengths else None
    compared = [run for run in done if run.caption_length == caption_length]
    if not compared:
        raise UserError(
            f"{study.folder}: no run on captions of {caption_length} words is finished yet; run the study first"
        )
    metric = compared[0].config.training.metric
    systems, settings = _study_systems(plan, compared, get_metric(metric).name)
    records, missing = system_files.read_records(settings, study.split)
    metrics = list(dict.fromkeys((*NAMES, metric)))
    tokenizer = compared[0].config.text.tokenizer
    scored, common_records, remarks = results.score_systems(
        systems, records, split=study.split, metrics=metrics, tokenizer=tokenizer
    )
    comparison = results.compare(scored, common_records, primary=metric, tokenizer=tokenizer)
    if len(done) < len(plan.runs):
        remarks = [f"Unfinished: {len(done)} of the study's {len(plan.runs)} runs are here.", *remarks]
    comparison |= {
        "split": study.split,
        "metric": comparison["primary"],
        "chosen_on": "val",
        "remarks": [*remarks, *missing],
        "setup": _study_setup(plan, compared[0]),
        "study": study.name,
    }
    if speed:
        folders: dict[str, Path] = {}
        for run in compared:
            folders.setdefault(run.system, run.config.folder)
        comparison |= _speed(study.folder, folders, log)
    extra: list[Block] = []
    if study.lengths:
        numbers = _length_numbers(plan, done, log, speed=speed)
        claims = length_claims.answer_claims(numbers)
        comparison["headline"] = length_claims.headline(claims)
        comparison["length_study"] = {**numbers, "claims": [claim._asdict() for claim in claims]}
        comparison["scope"] = f", on captions of {caption_length} words"
        extra = length_page.blocks(numbers, claims)
    folder, title = study.folder / "report", f"Study {study.name}"
    page.write_report(folder, comparison, scored, common_records, title=title, extra=extra)
    log(comparison["headline"].replace("**", ""))
    return folder


def _speed(out: Path, folders: Mapping[str, Path], log: Log) -> dict[str, Any]:
    costs = measurements.speed_and_memory(out / "costs.json", folders, log)
    return {"costs": costs, "measured_on": measurements.machine()}


def _study_systems(
    plan: Plan, runs: Sequence[StudyRun], metric: str
) -> tuple[list[System], list[system_files.RunSettings]]:
    """The study's systems with their finished runs, and the settings of all runs."""
    study, rates = plan.study, learning_rate_scores(plan)
    by_system: dict[str, list[system_files.RunSettings]] = {}
    for run in runs:
        by_system.setdefault(run.system, []).append(system_files.read_settings(run.config.folder))
    systems = []
    for name, settings in by_system.items():
        size = plan.sizes[name]
        facts = {
            "parameters": size.parameters,
            "flops": size.flops,
            "widths": size.widths,
            "learning_rate": settings[0].values["training"]["learning_rate"],
            "config": settings[0].values,
            "learning_rates": {f"{rate:g}": score for rate, score in rates.get(name, {}).items()},
        }
        system_runs = [
            system_files.with_flops(
                system_files.read_run(run, study.split, metric=metric), size.flops / plan.shape.words
            )
            for run in settings
        ]
        systems.append(System(name, study.label(name), system_runs, facts))
    return systems, [run for settings in by_system.values() for run in settings]


def _study_setup(plan: Plan, done: StudyRun) -> list[str]:
    """How the runs were made, as sentences."""
    study, shape, config = plan.study, plan.shape, plan.runs[0].config
    training = config.training
    batch = f"{training.max_tokens} tokens" if training.max_tokens else f"{training.batch_size} images"
    matched = "in the sizes given"
    if study.match:
        matched = (
            f"matched by {study.match.by} to {study.match.target}, all widths of a decoder scaled together"
        )
    jobs = _read_count(study.folder / "plan.json", "jobs")
    threads = _read_count(done.config.folder / "env.json", "threads")
    sentences = [
        f"Decoders {matched}, for {shape.regions} regions of {shape.channels} channels, {shape.vocabulary:,} words and "
        f"captions of {shape.words} words on average.",
        f"The same for all: data `{config.dataset.kind}`, encoder `{config.encoder.kind}`, vocabulary, batches of "
        f"{batch} with {training.captions_per_image} captions per image in the same order for the same seed, "
        f"{training.epochs} epochs, search `{_search_settings(config)}`; the best epoch by {training.metric} on `val`.",
        f"Trained {jobs} at a time, with {threads} thread{'s' * (threads > 1)} each.",
    ]
    if study.learning_rates:
        on_length = f" on captions of {study.search_length} words" if study.lengths else ""
        sentences.append(
            f"Learning rates: {len(study.learning_rates)} tried for every decoder, {study.search_epochs} epochs each "
            f"with seed {study.seeds[0]}{on_length}; the best by {training.metric} on `val` for all seeds. "
            f"Where the best was the lowest or the highest tried, at most {MAX_WIDENINGS} further ones were tried."
        )
    return sentences


def _read_count(file: Path, key: str) -> int:
    """A number in a JSON object that the study has written; 1 if it is not there."""
    values = check_shape(read_json(file), dict[str, Any], where=file, advice="train the study again")
    count = values.get(key)
    return count if isinstance(count, int) else 1


def _search_settings(config: ExperimentConfig) -> str:
    settings = config.as_json()["search"].items()
    return ", ".join(f"{key} {value}" for key, value in settings if value is not None)


def _length_numbers(plan: Plan, done: Sequence[StudyRun], log: Log, *, speed: bool) -> dict[str, Any]:
    """The measurements of a length study, as `length_claims.answer_claims` takes them."""
    study = plan.study
    metric = get_metric(done[0].config.training.metric).name
    numbers: dict[str, dict[str, dict[int, list[float]]]] = {
        key: {name: {} for name in plan.sizes} for key in ("quality", "recall", "agreement")
    }
    for run in done:
        assert run.caption_length is not None
        folder = run.config.folder
        predictions = read_results(str(folder / f"predictions_{study.split}.json"))
        values = {
            "quality": read_scores(folder / f"scores_{study.split}.json").get(metric),
            "recall": measurements.recall(run, study.split, log).get("among_names"),
            "agreement": name_agreement([prediction.caption for prediction in predictions]),
        }
        for key, value in values.items():
            if value is not None:
                numbers[key][run.system].setdefault(run.caption_length, []).append(value)
    lengths = [words for words in sorted(study.lengths) if any(run.caption_length == words for run in done)]
    return {
        **numbers,
        "metric": metric,
        "lengths": lengths,
        "labels": {name: study.label(name) for name in plan.sizes},
        "costs": measurements.costs_by_length(plan, lengths, log) if speed else {},
    }


def report_runs(folders: Sequence[Path], *, split: str, out: Path, log: Log, speed: bool = True) -> Path:
    """Report on finished runs; runs that differ only in their seed are one system."""
    settings = [system_files.read_settings(folder) for folder in folders]
    groups = system_files.group_runs(settings)
    firsts = {name: group[0] for name, group in groups.items()}
    systems = []
    for name, group in groups.items():
        runs = [system_files.read_run(run, split, metric=run.metric) for run in group]
        facts, flops_per_token = measurements.decoder_facts(group[0].folder)
        facts["config"] = group[0].values
        systems.append(
            System(name, name, [system_files.with_flops(run, flops_per_token) for run in runs], facts)
        )
    records, missing = system_files.read_records(settings, split)
    tokenizer = system_files.read_tokenizer(settings)
    scored, common_records, remarks = results.score_systems(
        systems, records, split=split, tokenizer=tokenizer
    )
    comparison = results.compare(scored, common_records, tokenizer=tokenizer)
    metrics = {run.metric for run in settings}
    comparison |= {
        "split": split,
        "metric": metrics.pop() if len(metrics) == 1 else "score",
        "chosen_on": "val",
        "remarks": [*remarks, *missing],
        "setup": ["These runs were not planned as one study."],
    }
    if speed:
        comparison |= _speed(out, {name: run.folder for name, run in firsts.items()}, log)
    title = "Comparison of " + ", ".join(groups)
    page.write_report(out, comparison, scored, common_records, title=title)
    log(comparison["headline"].replace("**", ""))
    return out
