"""Captions and log-probabilities of every decoder and search, compared with stored ones.

python tests/generation/test_golden_captions.py     # stores new ones, after a change that should move them
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from captioning.captioner.predict import generate_captions
from captioning.generation import (
    BeamConfig,
    DiverseBeamConfig,
    GreedyConfig,
    SampleConfig,
    SearchConfig,
    StochasticBeamConfig,
)
from captioning.utils.validation import members
from tests.helpers.models import DECODERS, tiny_captioner

STORED = Path(__file__).with_name("golden_captions.json")
IMAGES = 7
SEARCHES = (
    GreedyConfig(max_length=9),
    BeamConfig(width=3, max_length=9, n_best=3),
    DiverseBeamConfig(width=4, groups=2, max_length=9, n_best=2),
    SampleConfig(samples=3, max_length=9, temperature=0.8, top_p=0.95, seed=5),
    StochasticBeamConfig(samples=3, max_length=9, seed=7),
)

Captions = list[list[tuple[str, float]]]  # for every image its captions, best first, with log-probabilities


def generate(kind: str) -> dict[str, Captions]:
    """The captions of every search with a tiny model of random weights."""
    captioner = tiny_captioner(kind)
    images = torch.randn(23, 3, 20, 20, generator=torch.Generator().manual_seed(11))[:IMAGES]
    captions: dict[str, Captions] = {}
    for config in SEARCHES:
        predictions = generate_captions(captioner, images, range(IMAGES), config=config)
        captions[config.kind] = [
            [(each.caption, each.logprob) for each in (best, *best.alternatives)] for best in predictions
        ]
    return captions


def test_every_search_is_stored():
    assert {config.kind for config in SEARCHES} == members(SearchConfig).keys()


@pytest.mark.parametrize("kind", DECODERS)
def test_captions_are_as_stored(kind):
    stored, generated = json.loads(STORED.read_text(encoding="utf-8"))[kind], generate(kind)
    assert generated.keys() == stored.keys()
    for search, captions in generated.items():
        for now, before in zip(captions, stored[search], strict=True):
            # other processors round differently, and equal log-probabilities may change places
            assert dict(now) == pytest.approx(dict(before), abs=0.01), search


if __name__ == "__main__":
    lines = []
    for kind in DECODERS:
        rounded = {
            search: [[(caption, round(logprob, 4)) for caption, logprob in image] for image in captions]
            for search, captions in generate(kind).items()
        }
        lines.append(f"{json.dumps(kind)}: {json.dumps(rounded, ensure_ascii=False)}")
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"stored in {STORED}")
