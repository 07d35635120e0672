"""How fast training and decoding are, beside the textbook way in the same run. Times, counts and compares."""

from __future__ import annotations

import ctypes
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from captioning.analysis import yardstick
from captioning.batches import pack
from captioning.decoders import SoftAttentionLSTMConfig, build
from captioning.decoders.soft_attention_lstm import SoftAttentionLSTM
from captioning.losses import cross_entropy
from captioning.search import BeamConfig, search
from captioning.tensors import Features
from captioning.vocabulary import SPECIALS, Vocabulary

REGIONS, CHANNELS, WORDS = 49, 512, 9487
WIDTH, LENGTH, IMAGES = 5, 20, 50


def _decoder(seed: int) -> SoftAttentionLSTM:
    torch.manual_seed(seed)
    config = SoftAttentionLSTMConfig(embedding=512, hidden=512, attention_size=512, dropout=0.0)
    decoder = build(config, channels=CHANNELS, vocabulary_size=WORDS)
    assert isinstance(decoder, SoftAttentionLSTM)
    return decoder


def rounds(ways: dict[str, Callable[[], Any]], *, repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, in interleaved repeats: what else the machine does strikes all of them alike."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def large_product(size: int = 2048) -> tuple[Callable[[], Any], int]:
    """A large float32 matrix product, and its FLOPs: its rate is taken for the machine's peak."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    return lambda: left @ right, 2 * size**3


def flops(work: Callable[[], Any]) -> int:
    """FLOPs of the matrix products in `work` (`torch.utils.flop_counter`)."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_memory(work: Callable[[], Any]) -> int:
    """Bytes by which the process's resident memory rises at most while `work` runs, sampled each millisecond.

    0 where the system does not tell (not Linux).
    """
    status = Path("/proc/self/statm")
    if not status.exists():
        return 0
    page, done, highest = 4096, threading.Event(), 0
    ctypes.CDLL(None).malloc_trim(0)  # so that memory freed before does not hide what is taken now
    before = int(status.read_text().split()[1]) * page

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, int(status.read_text().split()[1]) * page)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return max(0, highest - before)


def summary(
    seconds: dict[str, list[float]],
    *,
    units: int,
    unit: str,
    counted: int,
    product_flops: int,
    memory: dict[str, int],
    beside: str = "textbook",
) -> dict[str, Any]:
    """What the benchmarks print of `rounds` with the ways "ours", `beside` and "product"."""
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    peak = product_flops / min(seconds["product"])
    return {
        "ratio": statistics.median(
            theirs / ours for theirs, ours in zip(seconds[beside], seconds["ours"], strict=True)
        ),
        "ours_per_s": units / middle["ours"],
        f"{beside}_per_s": units / middle[beside],
        "unit": unit,
        "peak_share": counted / middle["ours"] / peak,
        "peak_gflops": peak / 1e9,
        "gflop": counted / 1e9,
        "memory_mb": {name: round(value / 2**20, 1) for name, value in memory.items()},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeats": len(seconds["ours"]),
    }


def benchmark_train(*, repeats: int = 15, seed: int = 0) -> dict[str, Any]:
    """A training step (forward, backward, clipping, Adam) on 50 captions of 8 to 14 words of 10 images."""
    generator = np.random.default_rng(seed)
    vocabulary = Vocabulary(words=(*SPECIALS, *(f"w{i}" for i in range(WORDS - len(SPECIALS)))))
    chosen = [
        sorted(
            (
                np.concatenate(
                    [
                        [vocabulary.start],
                        generator.integers(4, WORDS, generator.integers(8, 15)),
                        [vocabulary.end],
                    ]
                )
                for _ in range(5)
            ),
            key=len,
            reverse=True,
        )
        for _ in range(10)
    ]
    words, running, tokens = pack(chosen, width=5, pad=vocabulary.pad)
    features = torch.from_numpy(generator.standard_normal((10, REGIONS, CHANNELS), np.float32))
    models = {"ours": _decoder(seed), "textbook": _decoder(seed)}
    # ours as the training loop has it; the textbook with torch's defaults
    optimizers = {
        name: torch.optim.Adam(model.parameters(), lr=1e-5, fused=True if name == "ours" else None)
        for name, model in models.items()
    }
    losses: dict[str, float] = {}

    def ours() -> torch.Tensor:
        model = models["ours"]
        steps = model(words[..., :-1], model.remember(Features(features)), running)
        targets = words[..., 1:].flatten()
        counts = (targets != vocabulary.pad).nonzero().squeeze(1)
        hidden = steps.hidden.flatten(0, 2).index_select(0, counts)
        return cross_entropy(model.logits(hidden), targets[counts], smoothing=0.0) / tokens

    def textbook() -> torch.Tensor:
        return yardstick.loss(models["textbook"], features, words, pad=vocabulary.pad)

    def update(name: str, loss: Callable[[], torch.Tensor]) -> None:
        optimizers[name].zero_grad()
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(models[name].parameters(), 5.0)
        optimizers[name].step()
        losses[name] = float(value)

    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: update("ours", ours),
        "textbook": lambda: update("textbook", textbook),
    }
    counted = flops(ways["ours"])
    ways["textbook"]()
    product, product_flops = large_product()
    seconds = rounds({**ways, "product": product}, repeats=repeats)
    difference = abs(losses["ours"] - losses["textbook"]) / losses["textbook"]
    if difference > 1e-4:  # a benchmark of two different things would be worth nothing
        raise RuntimeError(f"the two ways disagree: losses {losses}")
    memory = {name: peak_memory(way) for name, way in ways.items()}
    return {
        "name": "train",
        **summary(
            seconds, units=50, unit="captions", counted=counted, product_flops=product_flops, memory=memory
        ),
        "loss_difference": difference,
    }


def benchmark_decode(*, repeats: int = 5, seed: int = 0) -> dict[str, Any]:
    """Beam search of width 5 over 50 images, each caption exactly 20 words."""
    generator = np.random.default_rng(seed)
    features = torch.from_numpy(generator.standard_normal((IMAGES, REGIONS, CHANNELS), np.float32))
    model = _decoder(seed).eval()
    config = BeamConfig(width=WIDTH, min_length=LENGTH, max_length=LENGTH)
    vocabulary = Vocabulary(words=SPECIALS)
    banned = torch.tensor([*vocabulary.unwanted, vocabulary.end])
    results: dict[str, torch.Tensor] = {}

    def ours() -> None:
        with torch.inference_mode():
            memory = model.remember(Features(features))
            found = search(
                model,
                memory,
                config,
                start=vocabulary.start,
                end=vocabulary.end,
                unwanted=vocabulary.unwanted,
            )
            results["ours"] = found.words[:, 0]

    def textbook() -> None:
        results["textbook"] = yardstick.beam(
            model, features, width=WIDTH, length=LENGTH, start=vocabulary.start, banned=banned
        )

    ways: dict[str, Callable[[], Any]] = {"ours": ours, "textbook": textbook}
    counted = flops(ours)
    product, product_flops = large_product()
    seconds = rounds({**ways, "product": product}, repeats=repeats)
    same = float((results["ours"] == results["textbook"]).all(1).float().mean())
    if same < 0.9:  # rounding may tip a near tie, no more
        raise RuntimeError(f"the two ways disagree: only {100 * same:.0f} % of the captions are the same")
    memory = {name: peak_memory(way) for name, way in ways.items()}
    return {
        "name": "decode",
        **summary(
            seconds, units=IMAGES, unit="images", counted=counted, product_flops=product_flops, memory=memory
        ),
        "same_captions": same,
    }
