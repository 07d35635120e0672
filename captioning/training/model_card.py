"""The model card of a trained model, and the environment of a run."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from typing import Any

import torch
import torchvision

from captioning.captioner.captioner import Captioner, count_parameters
from captioning.metrics import get_metric, printed_scale
from captioning.training.checkpoint import Progress
from captioning.utils.code_version import code_version


def environment(device: torch.device) -> dict[str, Any]:
    """Versions of code and packages, and the machine, for env.json."""
    return {
        "code": code_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
    }


def model_card(
    config: Mapping[str, Any], captioner: Captioner, progress: Progress, scores: Mapping[str, float]
) -> str:
    """The model folder's README. `config`: the experiment's settings as plain values."""
    metric = get_metric(config["training"]["metric"])
    rows = "\n".join(
        f"| {name} | {printed_scale(name, metric) * value:.1f} |"
        for name, value in scores.items()
        if name != "loss"
    )
    vocabulary = f"{len(captioner.vocabulary):,} {captioner.vocabulary.unit}"
    return f"""# {config["name"]}

An image captioning model: {config["encoder"]["kind"]} encoder, `{config["decoder"]["kind"]}` decoder with
{count_parameters(captioner.decoder)["parameters"] / 1e6:.2f} M parameters, {vocabulary}.
Trained on the training split of `{config["dataset"]["kind"]}`, seed {config["seed"]}, epoch {progress.best_epoch} of
{config["training"]["epochs"]}, chosen by {metric.name} on its validation split.

    captioning caption IMAGE --model THIS_FOLDER

Scores on the validation split (times 100), on which this epoch was chosen; these are no test scores.
Search: `{json.dumps(config["search"])}`.

| metric | score |
|---|---|
{rows}

The captions reflect the training data, including their mistakes and biases. CIDEr-D is the score that papers report as
CIDEr, computed by the class `Cider` of pycocoevalcap.
Code {code_version()}.
"""
