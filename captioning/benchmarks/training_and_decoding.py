"""How fast training and decoding are, beside the textbook way in the same run. Times, counts and compares."""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from captioning.benchmarks import naive_baseline
from captioning.generation import BeamConfig, GreedyConfig, SearchConfig, search
from captioning.loaders.batches import pack
from captioning.models.cost import counting
from captioning.models.decoders import Decoder, SoftAttentionLSTMConfig, build
from captioning.models.decoders.soft_attention_lstm import SoftAttentionLSTM
from captioning.ops.cpu_kernels import keep_freed_memory
from captioning.tensors import Features
from captioning.text.vocabulary import SPECIALS, Vocabulary
from captioning.training.losses import caption_logprobs, cross_entropy, hard_attention

REGIONS, CHANNELS, WORDS = 49, 512, 9487
WIDTH, LENGTH, IMAGES = 5, 20, 50


def _decoder(seed: int) -> SoftAttentionLSTM:
    torch.manual_seed(seed)
    config = SoftAttentionLSTMConfig(embedding=512, hidden=512, attention_size=512, dropout=0.0)
    decoder = build(config, channels=CHANNELS, vocabulary_size=WORDS)
    assert isinstance(decoder, SoftAttentionLSTM)
    return decoder


class Contenders(NamedTuple):
    """The same work in two ways; each gives what both must agree in."""

    ours: Callable[[], Tensor]
    textbook: Callable[[], Tensor]


class WorkerProcess:
    """The textbook way in a process of its own, where nothing that we set for ourselves (`allocator`) helps it."""

    def __init__(self, make: Callable[[int], Contenders], seed: int):
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


def _serve(pipe: Any, make: Callable[[int], Contenders], seed: int, threads: int) -> None:
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
            seconds[name].append(way()[0] if isinstance(way, WorkerProcess) else _timed(way)[0])
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
    """FLOPs of the products in `work`, counted where `cost` counts."""
    with counting() as counter:
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


def _beside(
    ways: Contenders, apart: WorkerProcess, *, repeats: int, units: int, unit: str
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


class Training(NamedTuple):
    """50 captions of 8 to 14 words of 10 images, as the training loop gets them."""

    features: Tensor  # (B, N, D)
    words: Tensor  # (B, K, T + 1) int64
    batch_sizes: tuple[int, ...]
    tokens: int
    pad: int


def training_data(seed: int) -> Training:
    generator = np.random.default_rng(seed)
    vocabulary = Vocabulary(words=(*SPECIALS, *(f"w{i}" for i in range(WORDS - len(SPECIALS)))))

    def caption() -> np.ndarray:
        words = generator.integers(4, WORDS, generator.integers(8, 15))
        return np.concatenate([[vocabulary.start], words, [vocabulary.end]])

    chosen = [sorted((caption() for _ in range(5)), key=len, reverse=True) for _ in range(10)]
    words, batch_sizes, tokens = pack(chosen, width=5, pad=vocabulary.pad)
    features = torch.from_numpy(generator.standard_normal((10, REGIONS, CHANNELS), np.float32))
    return Training(features, words, batch_sizes, tokens, vocabulary.pad)


def trained(model: Decoder, data: Training) -> Tensor:
    """The loss of the training loop (`training.objective`), without what moves numbers at random."""
    steps = model(data.words[..., :-1], model.encode_memory(Features(data.features)), data.batch_sizes)
    targets = data.words[..., 1:].flatten()
    counts = (targets != data.pad).nonzero().squeeze(1)
    hidden = steps.hidden.flatten(0, 2).index_select(0, counts)
    logits = model.logits(hidden)
    value = cross_entropy(logits, targets[counts], smoothing=0.0)
    if steps.sampled_regions is not None:
        valid = data.words[..., 1:] != data.pad
        logprob = caption_logprobs(logits, targets[counts], valid)
        value = value + hard_attention(steps.attention, steps.sampled_regions, logprob, valid)
    return value / data.tokens


def updating(model: nn.Module, loss: Callable[[], Tensor], *, plain: bool) -> Callable[[], Tensor]:
    """A training step: forward, backward, clipping, Adam; as the loop has it, or `plain`, with torch's defaults."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=not plain)

    def update() -> Tensor:
        optimizer.zero_grad()
        value = loss()
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


def _training_ways(seed: int) -> Contenders:
    data, ours, theirs = training_data(seed), _decoder(seed), _decoder(seed)
    return Contenders(
        updating(ours, lambda: trained(ours, data), plain=False),
        updating(
            theirs, lambda: naive_baseline.loss(theirs, data.features, data.words, pad=data.pad), plain=True
        ),
    )


def benchmark_train(*, repeats: int = 15, seed: int = 0) -> dict[str, Any]:
    """A training step (forward, backward, clipping, Adam) on 50 captions of 8 to 14 words of 10 images."""
    return {"name": "train", **training_beside(_training_ways, repeats=repeats, seed=seed)}


def training_beside(make: Callable[[int], Contenders], *, repeats: int, seed: int) -> dict[str, Any]:
    """Training steps in the two ways of `make(seed)`, the textbook's in a process of its own."""
    apart = WorkerProcess(make, seed)
    keep_freed_memory()  # as captioning train does
    told, ours, textbook = _beside(make(seed), apart, repeats=repeats, units=50, unit="captions")
    difference = float(abs(ours - textbook) / textbook)
    if difference > 1e-4:  # a benchmark of two different things would be worth nothing
        raise RuntimeError(f"the two ways disagree: losses {ours} and {textbook}")
    return {**told, "loss_difference": difference}


class _Finding:
    """Words of the best caption of each image by a search; `beam` and `greedy` give exactly `LENGTH` words."""

    def __init__(self, seed: int):
        generator = np.random.default_rng(seed)
        self.features = torch.from_numpy(generator.standard_normal((IMAGES, REGIONS, CHANNELS), np.float32))
        self.model = _decoder(seed).eval()
        self.words = Vocabulary(words=SPECIALS)

    def beam(self) -> Tensor:
        return self._find(BeamConfig(width=WIDTH, min_length=LENGTH, max_length=LENGTH))

    def greedy(self) -> Tensor:
        return self._find(GreedyConfig(min_length=LENGTH, max_length=LENGTH))

    def _find(self, config: SearchConfig) -> Tensor:
        with torch.inference_mode():
            memory = self.model.encode_memory(Features(self.features))
            return search(self.model, memory, config, special=self.words.special_tokens).ids[:, 0]


def _decoding_ways(seed: int) -> Contenders:
    finding = _Finding(seed)
    start = finding.words.start
    banned = torch.tensor([*finding.words.special_tokens.suppress_ids, finding.words.end])

    def textbook() -> Tensor:
        return naive_baseline.beam(
            finding.model, finding.features, width=WIDTH, length=LENGTH, start=start, banned=banned
        )

    return Contenders(finding.beam, textbook)


def memory_ratios(memory: Mapping[str, int]) -> dict[str, float]:
    """Memory of a beam as a multiple of greedy search's with the beam's logits (B, K, V) added.

    Args:
        memory: bytes: `ours` and `ours_greedy` above the model's own, `beam_logits`, the model's `weights`.

    Returns:
        memory_ratio: with the weights, what a process must have. memory_ratio_without_weights: of what the
        searches take themselves.
    """
    allowed = memory["ours_greedy"] + memory["beam_logits"]
    return {
        "memory_ratio": (memory["weights"] + memory["ours"]) / (memory["weights"] + allowed),
        "memory_ratio_without_weights": memory["ours"] / max(1, allowed),
    }


def benchmark_decode(*, repeats: int = 5, seed: int = 0) -> dict[str, Any]:
    """Beam search of width 5 over 50 images, each caption exactly 20 words."""
    apart = WorkerProcess(_decoding_ways, seed)
    told, ours, textbook = _beside(_decoding_ways(seed), apart, repeats=repeats, units=IMAGES, unit="images")
    same = float((ours == textbook).all(1).mean())
    if same < 0.9:  # rounding may tip a near tie, no more
        raise RuntimeError(f"the two ways disagree: only {100 * same:.0f} % of the captions are the same")
    finding = _Finding(seed)
    memory = {
        "ours": peak_memory(finding.beam),
        "ours_greedy": peak_memory(finding.greedy),
        "beam_logits": IMAGES * WIDTH * WORDS * 4,
        "weights": sum(each.numel() * each.element_size() for each in finding.model.parameters()),
    }
    told["memory_mb"] |= {name: round(value / 2**20, 1) for name, value in memory.items()}
    return {"name": "decode", **told, "same_captions": same, **memory_ratios(memory)}
