"""Learning rate schedules against their formulas."""

import math

import pytest

from captioning.training.schedule import ConstantConfig, CosineConfig, NoamConfig, PlateauConfig, StepConfig


def test_schedules():
    cosine = CosineConfig(warmup=10, final=0.1)
    values = [cosine.factor(step, steps_per_epoch=11, epochs=10) for step in range(110)]
    assert values[0] == pytest.approx(0.1) and max(values) == pytest.approx(1.0)
    assert values[60] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 0.5)) / 2)
    assert cosine.factor(110, steps_per_epoch=11, epochs=10) == pytest.approx(0.1)
    step = StepConfig(every=3, decay=0.8)
    assert [step.factor(s, steps_per_epoch=5, epochs=9) for s in (0, 14, 15, 30)] == pytest.approx(
        [1, 1, 0.8, 0.64]
    )
    assert ConstantConfig(warmup=4).factor(1, steps_per_epoch=5, epochs=9) == pytest.approx(0.5)


def test_noam_is_the_papers_rate_over_its_highest():
    """Vaswani et al. 2017, eq. 3: d^-0.5 min(step^-0.5, step warmup^-1.5), with steps from 1."""
    noam, size = NoamConfig(warmup=40), 512
    paper = [size**-0.5 * min(n**-0.5, n * 40**-1.5) for n in range(1, 200)]
    ours = [noam.factor(n - 1, steps_per_epoch=5, epochs=9) for n in range(1, 200)]
    assert ours == pytest.approx([rate / max(paper) for rate in paper])


def test_plateau_falls_when_scores_stay():
    plateau = PlateauConfig(stale=2, decay=0.5)
    scores = [1.0, 2.0, 1.5, 1.9, 1.0, 3.0, 2.0, 2.0, 2.0, 2.0]
    factors = [
        plateau.factor(99, steps_per_epoch=5, epochs=9, scores=scores[:n]) for n in range(len(scores) + 1)
    ]
    assert factors == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]
