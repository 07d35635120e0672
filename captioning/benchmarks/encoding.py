"""Benchmark of encoding: images per second of an encoder beside a plain loop over the same network."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from captioning.benchmarks.harness import Contenders
from captioning.benchmarks.torch_harness import compare_with_baseline, start_worker
from captioning.errors import UserError
from captioning.images.preprocessing import Preprocessing, normalize, preprocess_uint8
from captioning.images.reading import read_image
from captioning.models.encoders import (
    BaseEncoderConfig,
    Encoder,
    TimmConfig,
    TorchvisionConfig,
    build,
    for_inference,
)
from captioning.models.encoders.torchvision_cnn import list_layers

IMAGES, BATCH = 32, 16
WIDTH, HEIGHT = 500, 375
"""Size of the JPEG files, that of most Flickr8k images."""

DEFAULT = (
    TorchvisionConfig(name="mobilenet_v2"),
    TorchvisionConfig(name="resnet50"),
    TimmConfig(name="tf_efficientnet_lite2"),
)


def write_images(folder: str | os.PathLike[str], *, images: int, seed: int) -> list[str]:
    """Write JPEG files of smooth random colours with some noise; returns their paths."""
    generator = np.random.default_rng(seed)
    files = [str(Path(folder) / f"{number}.jpg") for number in range(images)]
    for file in files:
        coarse = generator.integers(0, 256, (HEIGHT // 25, WIDTH // 25, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        noisy = np.clip(smooth + generator.normal(0, 9, smooth.shape), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(file, quality=90)
    return files


def plain_transform(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """The preprocessing as torchvision's classic transforms, in the order of timm's and torchvision's examples.

    Raises:
        UserError: `resize` is "long_side", which they lack.
    """
    side = preprocessing.side
    if preprocessing.resize == "long_side":
        raise UserError("preprocessing.resize long_side has no plain counterpart; choose another encoder")
    return transforms.Compose(
        [
            transforms.Resize(
                side if preprocessing.resize == "short_side" else (side, side),
                transforms.InterpolationMode(preprocessing.interpolation),
            ),
            transforms.CenterCrop(preprocessing.size),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )


def plain_features(config: BaseEncoderConfig, encoder: Encoder) -> Callable[[Tensor], Tensor]:
    """The library's own forward pass without classifier: pixels -> the mean of an image's regions, (B, D)."""
    backbone: Any = encoder.backbone
    maps = (
        backbone.forward_features if config.kind == "timm" else nn.Sequential(*list_layers(backbone)).eval()
    )

    def features(pixels: Tensor) -> Tensor:
        output = maps(pixels)
        if output.ndim == 3:  # tokens, first the class and register tokens
            return output[:, getattr(backbone, "num_prefix_tokens", 0) :].mean(1)
        return output.mean((2, 3) if output.shape[1] == encoder.channels else (1, 2))

    return features


def _contenders(config: BaseEncoderConfig, files: Sequence[str] | None, images: int, seed: int) -> Contenders:
    """Reading, preprocessing and encoding `files`, or only encoding random pixels if it is None."""
    torch.manual_seed(seed)
    preprocessing = config.default_preprocessing()
    encoder = build(config).eval()
    random = torch.randn(images, 3, preprocessing.size, preprocessing.size)
    fast, plain = for_inference(encoder, random[:1]), plain_features(config, encoder)
    transform = plain_transform(preprocessing)

    def load(batch: slice) -> Tensor:
        if files is None:
            return random[batch]
        loaded = [preprocess_uint8(read_image(file).image, preprocessing) for file in files[batch]]
        return normalize(torch.stack(loaded), preprocessing)

    def load_plainly(batch: slice) -> Tensor:
        if files is None:
            return random[batch]
        return torch.stack([transform(default_loader(file)) for file in files[batch]])

    @torch.inference_mode()
    def run(load: Callable[[slice], Tensor], encode: Callable[[Tensor], Tensor]) -> Tensor:
        batches = (slice(start, start + BATCH) for start in range(0, images, BATCH))
        return torch.cat([encode(load(batch)) for batch in batches])

    return Contenders(
        partial(run, load, lambda pixels: fast(pixels).regions.mean(1)), partial(run, load_plainly, plain)
    )


def benchmark_encoder(
    config: BaseEncoderConfig, *, repeats: int = 5, seed: int = 0, images: int = IMAGES
) -> dict[str, Any]:
    """Images per second from JPEG files to regions, and of the network alone, in this process and without workers.

    Raises:
        UserError: the encoder is neither of torchvision nor of timm, or its regions are not the last maps as they are.
        RuntimeError: the contenders' features differ.
    """
    if config.kind not in ("torchvision", "timm"):
        raise UserError(
            f"--encoder: {config.kind} has no plain counterpart; choose a network of torchvision or timm"
        )
    if getattr(config, "layer", "last") != "last" or getattr(config, "grid", None):
        raise UserError("--encoder: only the last maps can be compared; leave out layer and grid")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(folder, images=images, seed=seed)
        for part, paths in (("files", files), ("network", None)):
            make = partial(_contenders, config, paths, images)
            worker = start_worker(make, seed)
            results[part], ours, naive = compare_with_baseline(
                make(seed), worker, repeats=repeats, units=images, unit="images"
            )
            difference = float(np.abs(ours - naive).max() / np.abs(naive).max())
            if difference > 1e-3:
                raise RuntimeError(f"the contenders disagree by {difference:.2g} of the largest value")
            results[part]["largest_difference"] = difference
    return {"name": "encode", "kind": config.kind, "encoder": getattr(config, "name", ""), **results}


def benchmark_all(*, repeats: int = 5, seed: int = 0) -> dict[str, Any]:
    """`benchmark_encoder` of networks of both libraries."""
    return {
        "name": "encode",
        "encoders": [benchmark_encoder(config, repeats=repeats, seed=seed) for config in DEFAULT],
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """The result as a printed table with one line per encoder."""
    rows = result.get("encoders", [result])
    table = [f"{'encoder':34}{'from files':>22}{'':7}{'network alone':>22}{'':7}"]
    table.append(f"{'images/s':34}{'ours':>11}{'plain':>11}{'ratio':>7}{'ours':>11}{'plain':>11}{'ratio':>7}")
    for row in rows:
        name, numbers = f"{row['kind']} {row['encoder']}", ""
        for part in ("files", "network"):
            one = row[part]
            numbers += f"{one['ours_per_s']:11.1f}{one['naive_baseline_per_s']:11.1f}{one['ratio']:7.2f}"
        table.append(f"{name:34}{numbers}")
    return [
        *table,
        f"from files: JPEGs of {WIDTH} x {HEIGHT} are read, preprocessed and encoded in one process with "
        f"{rows[0]['files']['threads']} threads. plain:",
        "torchvision's image loader and transforms, and its own or timm's forward pass under inference_mode.",
    ]
