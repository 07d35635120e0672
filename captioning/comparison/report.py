"""Trained runs -> a report: their captions scored and compared, their decoders measured. The page is analysis/'s."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from captioning.captioner.captioner import Captioner, count_parameters
from captioning.comparison import length, length_page, page, results
from captioning.comparison import speed as speed_tests
from captioning.comparison import systems as system_files
from captioning.comparison.results import System, SystemRun
from captioning.comparison.study import Plan, Run, scored, tried_rates
from captioning.config import ExperimentConfig, read_config
from captioning.datasets import of_split
from captioning.errors import UserError
from captioning.experiment import Experiment
from captioning.metrics.coco_names import read_scores
from captioning.models import cost
from captioning.models.decoders import DecoderConfig
from captioning.records import ImageRecord
from captioning.utils.files import fingerprint, read_json, sha256, write_json

Log = Callable[[str], None]
MEASURED = 64
"""Images whose decoding is timed."""


def report_study(plan: Plan, *, log: Log, speed: bool = True) -> Path:
    """Report on what a study has done so far; the report's folder.

    Raises:
        UserError: no run has captions of the split yet.
    """
    study = plan.study
    done = [run for run in plan.runs if scored(run.config.folder, study.split)]
    if not done:
        raise UserError(f"{study.folder}: no run has captions of {study.split} yet; run the study first")
    remarks = []
    if len(done) < len(plan.runs):
        remarks.append(f"Unfinished: {len(done)} of the study's {len(plan.runs)} runs are here.")
    at = study.search_length if study.lengths else None
    shown = [run for run in done if run.words == at]
    if not shown:
        raise UserError(
            f"{study.folder}: no run on captions of {at} words is finished yet; run the study first"
        )
    systems, records = _systems(plan, shown)
    compared, kept, more = results.score_all(systems, records, split=study.split)
    found = results.results(compared, kept, primary=_primary(shown[0].config))
    found |= {
        "split": study.split,
        "metric": shown[0].config.training.metric,
        "chosen_on": "val",
        "remarks": remarks + more,
        "made": _made(plan, shown[0]),
        "study": study.name,
    }
    if speed:
        firsts = {name: next(run for run in shown if run.system == name) for name in _names(shown)}
        found["costs"] = _costs(
            study.folder / "costs.json", {n: r.config.folder for n, r in firsts.items()}, log
        )
        found["measured_on"] = _machine()
    extra: list[Any] = []
    if study.lengths:
        numbers = _length_numbers(plan, done, log, speed=speed)
        answers = length_page.claims(numbers)
        found["headline"] = length_page.headline(answers)
        found["length_study"] = {**numbers, "claims": [each._asdict() for each in answers]}
        found["of"] = f", on captions of {at} words"
        extra = length_page.blocks(numbers)
    folder = study.folder / "report"
    page.write_report(folder, found, compared, kept, title=f"Study {study.name}", extra=extra)
    log(found["headline"].replace("**", ""))
    return folder


def _names(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.system for run in runs))


def _primary(config: ExperimentConfig) -> str:
    return config.training.metric


def _systems(plan: Plan, runs: Sequence[Run]) -> tuple[list[System], list[ImageRecord]]:
    """The study's systems with their finished runs, and the split's images."""
    split, rates = plan.study.split, tried_rates(plan)
    settings = {run.config.name: system_files.read_settings(run.config.folder) for run in runs}
    systems = []
    for name in _names(runs):
        size = plan.sizes[name]
        tried = rates.get(name, {})
        own = [run for run in runs if run.system == name]
        facts = {
            "parameters": size.parameters,
            "flops": size.flops,
            "widths": ", ".join(f"{key} {size.decoder[key]}" for key in cost.WIDTHS if size.decoder.get(key)),
            "rate": settings[own[0].config.name].values["training"]["learning_rate"],
            "rates": {f"{rate:g}": value for rate, value in tried.items()},
        }
        per_token = size.flops / plan.shape.words
        systems.append(
            System(
                name,
                plan.study.decoders[name].label or name,
                [
                    system_files.read_run(settings[run.config.name], split, flops_per_token=per_token)
                    for run in own
                ],
                facts,
            )
        )
    return systems, system_files.records_of(list(settings.values()), split)


def _made(plan: Plan, done: Run) -> list[str]:
    study, shape, first = plan.study, plan.shape, plan.runs[0].config
    tokens = first.training.max_tokens
    size = f"{tokens} tokens" if tokens else f"{first.training.batch_size} images"
    by = "as they come" if study.match is None else f"matched by {study.match.by} to {study.match.target}"
    lines = [
        f"Decoders {by}: all widths of a decoder scaled together, for {shape.regions} regions of {shape.channels} "
        f"channels, {shape.vocabulary:,} words and captions of {shape.words} words on average.",
        f"The same for all: data `{first.dataset.kind}`, encoder `{first.encoder.kind}`, vocabulary, batches of "
        f"{size} with {first.training.captions_per_image} captions an image in the same order for the same seed, "
        f"{first.training.epochs} epochs, search `{_search(first)}`; the best epoch by {_primary(first)} on `val`.",
    ]
    jobs = read_json(study.folder / "plan.json").get("jobs", 1)
    threads = read_json(done.config.folder / "env.json")["threads"]
    lines.append(f"Trained {jobs} at a time, with {threads} thread{'s' * (threads > 1)} each.")
    if study.learning_rates:
        lines.append(
            f"Learning rates: {len(study.learning_rates)} for every decoder, {study.search_epochs} epochs each with "
            f"seed {study.seeds[0]}"
            + (f" on captions of {study.search_length} words" if study.lengths else "")
            + f", the best by {first.training.metric} on `val` for all seeds."
        )
    return lines


def _search(config: ExperimentConfig) -> str:
    return ", ".join(
        f"{key} {value}" for key, value in config.as_json()["search"].items() if value is not None
    )


def _machine() -> str:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def report_runs(folders: Sequence[Path], *, split: str, out: Path, log: Log, speed: bool = True) -> Path:
    """Report on finished runs; those that differ in their seed only are one system."""
    settings = [system_files.read_settings(folder) for folder in folders]
    systems = system_files.systems_of(settings, split)
    records = system_files.records_of(settings, split)
    by_name = {each.folder.name: each for each in settings}
    first = {system.name: by_name[system.runs[0].name] for system in systems}
    systems = [system._replace(facts=_facts(first[system.name].folder)) for system in systems]
    systems = [_with_flops(system) for system in systems]
    compared, kept, remarks = results.score_all(systems, records, split=split)
    found = results.results(compared, kept)
    metrics = {each.metric for each in settings}
    found |= {
        "split": split,
        "metric": metrics.pop() if len(metrics) == 1 else "score",
        "chosen_on": "val",
        "remarks": remarks,
        "made": [
            "These runs were not planned as one study: look at their configs for what else differs than the decoder.",
            *_different({system.name: first[system.name].values for system in systems}),
        ],
    }
    if speed:
        found["costs"] = _costs(out / "costs.json", {name: each.folder for name, each in first.items()}, log)
        found["measured_on"] = _machine()
    page.write_report(out, found, compared, kept, title="Comparison of " + ", ".join(first))
    log(found["headline"].replace("**", ""))
    return out


def _facts(folder: Path) -> dict[str, Any]:
    """Parameters, FLOPs and learning rate of a run's decoder."""
    captioner = Captioner.open(folder / "model")
    config = read_config(folder / "config.yaml")
    pixels = torch.zeros(1, 3, config.preprocessing.size, config.preprocessing.size)
    with torch.inference_mode():
        _, regions, channels = captioner.encoder(pixels).regions.shape
    words = 12  # of a caption; what counts is the number for each
    flops = cost.flops_per_caption(
        config.decoder,
        channels=channels,
        vocabulary_size=len(captioner.vocabulary),
        regions=regions,
        words=words,
        captions=config.training.captions_per_image,
    )
    return {
        "parameters": count_parameters(captioner.decoder)["parameters"],
        "flops": flops,
        "flops_words": words,
        "rate": config.training.learning_rate,
    }


def _with_flops(system: System) -> System:
    per_token = system.facts["flops"] / system.facts["flops_words"]

    def changed(run: SystemRun) -> SystemRun:
        curve = [
            {**point, "teraflop": point["tokens"] * per_token / 1e12} if "tokens" in point else point
            for point in run.curve
        ]
        return run._replace(curve=curve)

    return system._replace(runs=[changed(run) for run in system.runs])


def _different(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings in which the systems differ."""
    flat = {name: _flat(each) for name, each in values.items()}
    keys = sorted({key for each in flat.values() for key in each})
    differ = [
        key
        for key in keys
        if key.split(".")[0] not in system_files.LEFT_OUT
        and len({str(each.get(key)) for each in flat.values()}) > 1
    ]
    return [
        f"`{key}`: " + ", ".join(f"{name} {each.get(key, 'none')}" for name, each in flat.items())
        for key in differ
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return result


def _costs(file: Path, folders: Mapping[str, Path], log: Log) -> dict[str, Any]:
    """Speed and memory of one model of each system, measured once and kept in `file`."""
    key = fingerprint({name: sha256(folder / "model" / "manifest.json") for name, folder in folders.items()})
    if file.is_file() and (kept := read_json(file)).get("models") == key:
        return kept["costs"]
    log("measuring speed and memory")
    captioners, features = {}, {}
    chosen: list[ImageRecord] = []
    captions = 5
    for name, folder in folders.items():
        experiment = _experiment(folder)
        captioner = captioners[name] = Captioner.open(folder / "model", device=experiment.device)
        records = of_split(experiment.collect(), "val")[:MEASURED]
        source = experiment.source(captioner, records)
        chosen = source.of(records)
        captions = experiment.config.training.captions_per_image
        images = source.images(chosen, training=False)
        features[name] = speed_tests.features_of(captioner, images, len(chosen))
    costs = speed_tests.measure(captioners, features, chosen, captions=captions)
    write_json(file, {"models": key, "machine": _machine(), "costs": costs})
    return costs


def _experiment(folder: Path) -> Experiment:
    config = replace(read_config(folder / "config.yaml"), runs=str(folder.parent), name=folder.name)
    return Experiment(config, log=lambda line: None)


def _length_numbers(plan: Plan, done: Sequence[Run], log: Log, *, speed: bool) -> dict[str, Any]:
    """What the length study measured: `compare_length.claims` says of what form."""
    study = plan.study
    lengths = [words for words in sorted(study.lengths) if any(run.words == words for run in done)]
    metric = _primary(done[0].config)
    numbers: dict[str, dict[str, dict[int, list[float]]]] = {
        key: {name: {} for name in plan.sizes} for key in ("quality", "recall", "agreement")
    }
    for run in done:
        assert run.words is not None
        scores = read_scores(run.config.folder / f"scores_{study.split}.json")
        predictions = read_json(run.config.folder / f"predictions_{study.split}.json")
        foreseen = _recall(run, study.split, log)
        values = {
            "quality": scores[metric],
            "recall": foreseen.get("among_names"),
            "agreement": length_page.agreement([each["caption"] for each in predictions]),
        }
        for key, value in values.items():
            if value is not None:
                numbers[key][run.system].setdefault(run.words, []).append(value)
    return {
        **numbers,
        "metric": metric,
        "lengths": lengths,
        "labels": {name: study.decoders[name].label or name for name in plan.sizes},
        "costs": _length_costs(plan, lengths, log) if speed else {},
    }


def _recall(run: Run, split: str, log: Log) -> dict[str, float]:
    folder = run.config.folder
    file, model = folder / f"recall_{split}.json", sha256(folder / "model" / "manifest.json")[:16]
    if file.is_file() and (kept := read_json(file)).get("model") == model:
        return kept["recall"]
    log(f"{run.config.name}: what it remembers of the first sentence")
    experiment = _experiment(folder)
    captioner = Captioner.open(folder / "model", device=experiment.device)
    records = of_split(experiment.collect(), split)
    source = experiment.source(captioner, records)
    records = source.of(records)
    found = length.recall(
        captioner,
        source.images(records, training=False),
        records,
        max_length=run.config.vocabulary.max_length,
    )
    write_json(file, {"model": model, "recall": found})
    return found


def _length_costs(plan: Plan, lengths: Sequence[int], log: Log) -> dict[str, list[dict[str, float]]]:
    decoders = {
        name: TypeAdapter(DecoderConfig).validate_python(size.decoder) for name, size in plan.sizes.items()
    }
    file = plan.study.folder / "length_costs.json"
    key = fingerprint([{name: size.decoder for name, size in plan.sizes.items()}, list(lengths)])
    if file.is_file() and (kept := read_json(file)).get("key") == key:
        return kept["costs"]
    log("measuring what a word costs at each length")
    shape = plan.shape
    costs = length.cost_by_length(
        decoders,
        lengths,
        channels=shape.channels,
        regions=shape.regions,
        vocabulary_size=shape.vocabulary,
    )
    write_json(file, {"key": key, "machine": _machine(), "costs": costs})
    return costs
