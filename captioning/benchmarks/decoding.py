"""Benchmark of decoding: beam search of the soft attention LSTM against a naive baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioning.benchmarks import naive_baseline
from captioning.benchmarks.harness import Contenders, peak_memory
from captioning.benchmarks.torch_harness import compare_with_baseline, start_worker
from captioning.benchmarks.training import CHANNELS, REGIONS, VOCABULARY_SIZE, soft_attention_lstm
from captioning.generation import BeamConfig, GreedyConfig, SearchConfig, search
from captioning.tensors import Features
from captioning.text.vocabulary import SPECIALS, Vocabulary

WIDTH, LENGTH, IMAGES = 5, 20, 50
BEAM = BeamConfig(width=WIDTH, min_length=LENGTH, max_length=LENGTH)
GREEDY = GreedyConfig(min_length=LENGTH, max_length=LENGTH)
SPECIAL = Vocabulary(words=SPECIALS).special_tokens


class Decoding:
    """A soft attention LSTM and the features of 50 images; its searches produce exactly 20 words."""

    def __init__(self, seed: int):
        generator = np.random.default_rng(seed)
        self.features = torch.from_numpy(generator.standard_normal((IMAGES, REGIONS, CHANNELS), np.float32))
        self.model = soft_attention_lstm(seed).eval()

    def beam(self) -> Tensor:
        return self._search(BEAM)

    def greedy(self) -> Tensor:
        return self._search(GREEDY)

    def naive_beam(self) -> Tensor:
        banned = torch.tensor([*SPECIAL.suppress_ids, SPECIAL.end])
        return naive_baseline.beam(
            self.model, self.features, width=WIDTH, length=LENGTH, start=SPECIAL.start, banned=banned
        )

    def _search(self, config: SearchConfig) -> Tensor:
        """Ids (B, T) of the best caption of each image."""
        with torch.inference_mode():
            memory = self.model.encode_memory(Features(self.features))
            return search(self.model, memory, config, special=SPECIAL).ids[:, 0]


def _contenders(seed: int) -> Contenders:
    decoding = Decoding(seed)
    return Contenders(decoding.beam, decoding.naive_beam)


def benchmark_decode(*, repeats: int = 5, seed: int = 0) -> dict[str, Any]:
    """Beam search of width 5 over 50 images, every caption exactly 20 words.

    Raises:
        RuntimeError: fewer than 90 % of the captions agree.
    """
    worker = start_worker(_contenders, seed)
    result, ours, naive = compare_with_baseline(
        _contenders(seed), worker, repeats=repeats, units=IMAGES, unit="images"
    )
    same = float((ours == naive).all(1).mean())
    check_same_captions(same)
    decoding = Decoding(seed)
    memory = {
        "ours": peak_memory(decoding.beam),
        "ours_greedy": peak_memory(decoding.greedy),
        "beam_logits": IMAGES * WIDTH * VOCABULARY_SIZE * 4,
        "weights": sum(weight.numel() * weight.element_size() for weight in decoding.model.parameters()),
    }
    result["memory_mb"] |= {name: round(value / 2**20, 1) for name, value in memory.items()}
    return {"name": "decode", **result, "same_captions": same, **memory_ratios(memory)}


def check_same_captions(share: float) -> None:
    """Raises RuntimeError if contenders find different captions; rounding may decide a few near ties."""
    if share < 0.9:
        raise RuntimeError(f"the contenders disagree: only {100 * share:.0f} % of the captions are the same")


def memory_ratios(memory: Mapping[str, int]) -> dict[str, float]:
    """Memory of beam search relative to that of greedy search plus the beam's logits (B, K, V).

    Args:
        memory: bytes: `ours` and `ours_greedy` above the model's own, `beam_logits`, the model's `weights`.

    Returns:
        memory_ratio: with the weights, that is, for the whole process. memory_ratio_without_weights: for the
        searches alone.
    """
    allowed = memory["ours_greedy"] + memory["beam_logits"]
    return {
        "memory_ratio": (memory["weights"] + memory["ours"]) / (memory["weights"] + allowed),
        "memory_ratio_without_weights": memory["ours"] / max(1, allowed),
    }
