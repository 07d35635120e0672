"""How fast training and decoding are, beside the textbook way in the same run. Times, counts and compares."""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from captioning.allocator import keep_freed_memory
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


class Ways(NamedTuple):
    """The same work in two ways; each gives what both must agree in."""

    ours: Callable[[], Tensor]
    textbook: Callable[[], Tensor]


class Apart:
    """The textbook way in a process of its own, where nothing that we set for ourselves (`allocator`) helps it."""

    def __init__(self, make: Callable[[int], Ways], seed: int):
        processes = multiprocessing.get_context("spawn")  # a fork would share our allocator's settings
        self._pipe, theirs = processes.Pipe()
        self._process = processes.Process(
            target=_serve, args=(theirs, make, seed, torch.get_num_threads()), daemon=True
        )
        self._process.start()
        theirs.close()

    def __call__(self) -> tuple[float, Any]:
        """Seconds that one run took, and its result."""
        return self._ask("time")

    def peak_memory(self) -> int:
        return self._ask("memory")

    def close(self) -> None:
        self._pipe.send("close")
        self._process.join()

    def _ask(self, what: str) -> Any:
        self._pipe.send(what)
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError("the textbook way's process ended; its error is above") from None


def _serve(pipe: Any, make: Callable[[int], Ways], seed: int, threads: int) -> None:
    torch.set_num_threads(threads)
    work = make(seed).textbook
    while (what := pipe.recv()) != "close":
        if what == "memory":
            pipe.send(peak_memory(work))
        else:
            seconds, result = _timed(work)
            pipe.send((seconds, result.numpy()))


def rounds(ways: dict[str, Callable[[], Any]], *, repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, in interleaved repeats: what else the machine does strikes all of them alike."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(way()[0] if isinstance(way, Apart) else _timed(way)[0])
    return seconds


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def large_product(size: int = 2048) -> tuple[Callable[[], Any], int]:
    """A large float32 matrix product, and its FLOPs: its rate is taken for the machine's peak."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    return lambda: left @ right, 2 * size**3


def flops(work: Callable[[], Any]) -> int:
    """FLOPs of the matrix products in `work` (`torch.utils.flop_counter`, which does not know packed ones)."""
    packed = {torch.ops.mkl._mkl_linear: _packed_flops} if torch.backends.mkl.is_available() else {}
    with FlopCounterMode(display=False, custom_mapping=packed) as counter:
        work()
    return counter.get_total_flops()


def _packed_flops(x: Any, packed: Any, weight: Any, bias: Any, rows: int, **_: Any) -> int:
    return 2 * int(np.prod(x[:-1])) * weight[0] * weight[1]


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


def _beside(
    ways: Ways, apart: Apart, *, repeats: int, units: int, unit: str
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """What is printed, and the results of ours and of the textbook."""
    results = ways.ours().numpy(), apart()[1]  # of the first time: training changes the weights
    counted = flops(ways.ours)
    product, product_flops = large_product()
    seconds = rounds({"ours": ways.ours, "textbook": apart, "product": product}, repeats=repeats)
    told = summary(
        seconds,
        units=units,
        unit=unit,
        counted=counted,
        product_flops=product_flops,
        memory={"ours": peak_memory(ways.ours), "textbook": apart.peak_memory()},
    )
    apart.close()
    return told, *results


def _training_ways(seed: int) -> Ways:
    generator = np.random.default_rng(seed)
    vocabulary = Vocabulary(words=(*SPECIALS, *(f"w{i}" for i in range(WORDS - len(SPECIALS)))))

    def caption() -> np.ndarray:
        words = generator.integers(4, WORDS, generator.integers(8, 15))
        return np.concatenate([[vocabulary.start], words, [vocabulary.end]])

    chosen = [sorted((caption() for _ in range(5)), key=len, reverse=True) for _ in range(10)]
    words, running, tokens = pack(chosen, width=5, pad=vocabulary.pad)
    features = torch.from_numpy(generator.standard_normal((10, REGIONS, CHANNELS), np.float32))

    def ours(model: SoftAttentionLSTM) -> Tensor:
        steps = model(words[..., :-1], model.remember(Features(features)), running)
        targets = words[..., 1:].flatten()
        counts = (targets != vocabulary.pad).nonzero().squeeze(1)
        hidden = steps.hidden.flatten(0, 2).index_select(0, counts)
        return cross_entropy(model.logits(hidden), targets[counts], smoothing=0.0) / tokens

    def textbook(model: SoftAttentionLSTM) -> Tensor:
        return yardstick.loss(model, features, words, pad=vocabulary.pad)

    def updating(loss: Callable[[SoftAttentionLSTM], Tensor], *, plain: bool) -> Callable[[], Tensor]:
        model = _decoder(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=not plain)

        def update() -> Tensor:
            optimizer.zero_grad()
            value = loss(model)
            value.backward()
            if plain:
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            else:
                norm = nn.utils.get_total_norm(
                    [each.grad for each in model.parameters() if each.grad is not None]
                )
                if norm > 5.0:
                    nn.utils.clip_grads_with_norm_(model.parameters(), 5.0, norm)
            optimizer.step()
            return value.detach()

        return update

    # ours as the training loop has it; the textbook with torch's defaults
    return Ways(updating(ours, plain=False), updating(textbook, plain=True))


def benchmark_train(*, repeats: int = 15, seed: int = 0) -> dict[str, Any]:
    """A training step (forward, backward, clipping, Adam) on 50 captions of 8 to 14 words of 10 images."""
    apart = Apart(_training_ways, seed)
    keep_freed_memory()  # as tools/train.py does
    told, ours, textbook = _beside(_training_ways(seed), apart, repeats=repeats, units=50, unit="captions")
    difference = float(abs(ours - textbook) / textbook)
    if difference > 1e-4:  # a benchmark of two different things would be worth nothing
        raise RuntimeError(f"the two ways disagree: losses {ours} and {textbook}")
    return {"name": "train", **told, "loss_difference": difference}


def _decoding_ways(seed: int) -> Ways:
    generator = np.random.default_rng(seed)
    features = torch.from_numpy(generator.standard_normal((IMAGES, REGIONS, CHANNELS), np.float32))
    model = _decoder(seed).eval()
    config = BeamConfig(width=WIDTH, min_length=LENGTH, max_length=LENGTH)
    words = Vocabulary(words=SPECIALS)
    ids: dict[str, Any] = {"start": words.start, "end": words.end, "unwanted": words.unwanted}
    banned = torch.tensor([*words.unwanted, words.end])

    def ours() -> Tensor:
        with torch.inference_mode():
            found = search(model, model.remember(Features(features)), config, **ids)
            return found.words[:, 0]

    def textbook() -> Tensor:
        return yardstick.beam(model, features, width=WIDTH, length=LENGTH, start=words.start, banned=banned)

    return Ways(ours, textbook)


def benchmark_decode(*, repeats: int = 5, seed: int = 0) -> dict[str, Any]:
    """Beam search of width 5 over 50 images, each caption exactly 20 words."""
    apart = Apart(_decoding_ways, seed)
    told, ours, textbook = _beside(_decoding_ways(seed), apart, repeats=repeats, units=IMAGES, unit="images")
    same = float((ours == textbook).all(1).mean())
    if same < 0.9:  # rounding may tip a near tie, no more
        raise RuntimeError(f"the two ways disagree: only {100 * same:.0f} % of the captions are the same")
    return {"name": "decode", **told, "same_captions": same}
