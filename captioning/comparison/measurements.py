"""Measurements of trained models for a report: speed, memory and recall, each stored beside the runs."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from captioning.captioner.captioner import Captioner, count_parameters
from captioning.comparison import length, speed
from captioning.comparison.plan import Plan, StudyRun
from captioning.config import read_config
from captioning.datasets import of_split
from captioning.experiment import Experiment
from captioning.loaders.images import Images
from captioning.models import cost
from captioning.models.decoders import DecoderConfig
from captioning.records import ImageRecord
from captioning.utils.files import fingerprint, read_json, sha256, write_json
from captioning.utils.validation import validate

Log = Callable[[str], None]

DECODED_IMAGES = 64
"""Number of images whose decoding is timed."""

WORDS = 12
"""Caption length for which a single run's FLOPs per token are counted."""


def machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def decoder_facts(folder: Path) -> tuple[dict[str, Any], float]:
    """Parameters, FLOPs per caption and learning rate of a run, and its FLOPs per token."""
    captioner = Captioner.open(folder / "model")
    config = read_config(folder / "config.yaml")
    pixels = torch.zeros(1, 3, config.preprocessing.size, config.preprocessing.size)
    with torch.inference_mode():
        _, regions, channels = captioner.encoder(pixels).regions.shape
    flops = cost.flops_per_caption(
        config.decoder,
        channels=channels,
        vocabulary_size=len(captioner.vocabulary),
        regions=regions,
        words=WORDS,
        captions=config.training.captions_per_image,
    )
    facts = {
        "parameters": count_parameters(captioner.decoder)["parameters"],
        "flops": flops,
        "learning_rate": config.training.learning_rate,
    }
    return facts, flops / WORDS


def speed_and_memory(file: Path, folders: Mapping[str, Path], log: Log) -> dict[str, dict[str, float]]:
    """`speed.measure` of one model per system, measured once and stored in `file`.

    Args:
        folders: a run's folder by the name of its system.
    """

    def measure() -> dict[str, dict[str, float]]:
        log("measuring speed and memory")
        captioners, features = {}, {}
        records: list[ImageRecord] = []
        captions = 5
        for name, folder in folders.items():
            experiment, captioner = _open(folder)
            records, images = _images(experiment, captioner, "val", DECODED_IMAGES)
            captioners[name] = captioner
            features[name] = speed.encode(captioner, images, len(records))
            captions = experiment.config.training.captions_per_image
        return speed.measure(captioners, features, records, captions=captions)

    models = {name: sha256(folder / "model" / "manifest.json") for name, folder in folders.items()}
    return _stored(file, fingerprint(models), measure)


def recall(run: StudyRun, split: str, log: Log) -> dict[str, float]:
    """`length.recall` of a run's model, measured once and stored in its folder."""
    folder = run.config.folder

    def measure() -> dict[str, float]:
        log(f"{run.config.name}: recall of the first sentence's name")
        experiment, captioner = _open(folder)
        records, images = _images(experiment, captioner, split)
        return length.recall(captioner, images, records, max_length=run.config.vocabulary.max_length)

    return _stored(folder / f"recall_{split}.json", sha256(folder / "model" / "manifest.json")[:16], measure)


def costs_by_length(plan: Plan, lengths: Sequence[int], log: Log) -> dict[str, list[dict[str, float]]]:
    """`length.cost_by_length` of the study's decoders, measured once and stored in its folder."""
    configs = {name: size.decoder for name, size in plan.sizes.items()}

    def measure() -> dict[str, list[dict[str, float]]]:
        log("measuring the cost per word at each length")
        decoders: dict[str, DecoderConfig] = {
            name: validate(DecoderConfig, config, where="") for name, config in configs.items()
        }
        return length.cost_by_length(
            decoders,
            lengths,
            channels=plan.shape.channels,
            regions=plan.shape.regions,
            vocabulary_size=plan.shape.vocabulary,
        )

    return _stored(plan.study.folder / "length_costs.json", fingerprint([configs, list(lengths)]), measure)


def _stored(file: Path, key: str, measure: Callable[[], Any]) -> Any:
    """The result in `file` if it was measured for the same key, else a new one."""
    stored = read_json(file) if file.is_file() else None
    if isinstance(stored, dict) and stored.get("key") == key and "result" in stored:
        return stored["result"]
    result = measure()
    write_json(file, {"key": key, "machine": machine(), "result": result})
    return result


def _open(folder: Path) -> tuple[Experiment, Captioner]:
    """A run's experiment and its trained model."""
    config = replace(read_config(folder / "config.yaml"), runs=str(folder.parent), name=folder.name)
    experiment = Experiment(config, log=lambda line: None)
    return experiment, Captioner.open(folder / "model", device=experiment.device)


def _images(
    experiment: Experiment, captioner: Captioner, split: str, count: int | None = None
) -> tuple[list[ImageRecord], Images]:
    """The first `count` images of a split (None: all) that can be read."""
    records = of_split(experiment.load_dataset(), split)[:count]
    source = experiment.image_source(captioner.encoder, records)
    records = source.readable(records)
    return records, source.images(records, training=False)
