"""Small training runs for tests: settings, captions and the metrics that a run wrote."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from captioning.config import parse
from captioning.experiment import Experiment
from captioning.loaders.captions import EncodedCaptions
from captioning.records import ImageRecord
from captioning.text.vocabulary import Vocabulary

CAPTIONS = [
    "a red dog runs .",
    "a dog",
    "the cat sits on a mat and looks",
    "one two three",
    "dog dog dog dog dog",
]

ALL_OPTIONS = {
    "scheduled_sampling": {"start": 0.3, "increase": 0.3, "every": 1, "most": 0.6, "passes": 2},
    "caption_weights": {"kind": "consensus", "strength": 0.5},
    "word_weights": {"kind": "frequency"},
    "r_drop": 1.0,
    "embedding_dropout": 0.1,
    "max_tokens": 300,
    "accumulate": 2,
}
"""Every option of cross-entropy that any decoder can use."""


def records(count: int) -> list[ImageRecord]:
    """Records with one to four of `CAPTIONS` each; no image files."""
    rng = np.random.default_rng(0)
    return [
        ImageRecord(number, f"{number}.png", tuple(rng.choice(CAPTIONS, rng.integers(1, 5))), "train")
        for number in range(count)
    ]


def encoded_captions(count: int) -> tuple[EncodedCaptions, Vocabulary]:
    """The captions of `records(count)`, and their vocabulary."""
    vocabulary = Vocabulary.build(CAPTIONS, min_count=1)
    return EncodedCaptions.from_records(records(count), vocabulary, max_length=6), vocabulary


def tiny_settings(
    folder: Path, name: str, kind: str = "soft_attention_lstm", epochs: int = 2
) -> dict[str, Any]:
    """Settings of a run on 24 drawn scenes: five updates an epoch, no tracking."""
    decoder = {
        "soft_attention_lstm": {"embedding": 8, "hidden": 16, "attention_size": 8, "dropout": 0.2},
        "hard_attention_lstm": {"embedding": 8, "hidden": 16, "attention_size": 8},
        "transformer": {"hidden": 16, "feed_forward": 32, "heads": 2, "layers": 1, "max_length": 32},
    }[kind]
    return {
        "name": name,
        "runs": str(folder / "runs"),
        "device": "cpu",
        "dataset": {
            "kind": "shapes", "root": str(folder / "shapes"), "train": 24, "val": 8, "test": 6, "unseen": 5,
            "size": 32,
        },
        "encoder": {"kind": "small"},
        "preprocessing": {"size": 32},
        "vocabulary": {"min_count": 1, "max_length": 30},
        "decoder": {"kind": kind, **decoder},
        "search": {"kind": "beam", "width": 2, "max_length": 12},
        "training": {
            "epochs": epochs, "batch_size": 5, "log_every": 2, "ema_decay": 0.9,
            "schedule": {"kind": "constant"}, "patience": 9,
        },
        "tracking": {"mode": "disabled"},
    }  # fmt: skip


def experiment(values: dict[str, Any], log: Callable[[str], None] = lambda _: None) -> Experiment:
    """The run with these settings, silent by default."""
    return Experiment(parse(values, where="test"), log=log)


def small_run(
    folder: Path,
    name: str = "run",
    *,
    log: Callable[[str], None] = lambda _: None,
    epochs: int = 2,
    **training: Any,
) -> Experiment:
    """The run of `tiny_settings` with other training settings."""
    values = tiny_settings(folder, name, epochs=epochs)
    values["training"] |= training
    return experiment(values, log)


def checkpoint_weights(run: Experiment) -> bytes:
    """The weights in the last checkpoint."""
    return (run.folder / "checkpoints" / "last" / "model.safetensors").read_bytes()


def metrics_of(run: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def eventually(condition: Callable[[], Any], seconds: float = 120) -> bool:
    """Wait until `condition()` is true, at most this long; whether it is."""
    deadline = time.monotonic() + seconds
    while not (fulfilled := bool(condition())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return fulfilled
