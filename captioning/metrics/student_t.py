"""Student's t distribution: p values and quantiles, for degrees of freedom that need not be whole numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from captioning.metrics.ngrams import Floats

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(100)
_LARGEST_QUANTILE = 13.0  # more than t with one degree of freedom at 95 %


class TTest(NamedTuple):
    """Results of `t_test`, each (N,)."""

    p: Floats  # two-sided
    margin: Floats  # half the width of the 95 % interval
    degrees: Floats  # of freedom


def t_test(differences: Floats, components: Sequence[tuple[Floats, int]]) -> TTest:
    """Test whether differences (N,) are 0, given their variance as a sum of independently estimated components.

    The statistic is the difference divided by the root of the summed variance, compared with Student's t. Its degrees
    of freedom (Satterthwaite 1946; Welch 1947) are (sum of v_i)^2 / sum of v_i^2 / d_i for components v_i (N,) with
    d_i degrees of freedom.
    """
    variance = np.sum([component for component, _ in components], axis=0)
    spread = np.sum([component**2 / degrees for component, degrees in components], axis=0)
    degrees = np.divide(variance**2, spread, out=np.ones_like(variance), where=spread > 0)
    error = np.sqrt(variance)
    certain = np.where(differences == 0, 0.0, np.inf)  # without any variance
    t = np.divide(np.abs(differences), error, out=certain, where=error > 0)
    return TTest(two_sided_p(t, degrees), error * t_quantile(degrees), degrees)


def welch_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of equal means of two samples of at least 2 values each (Welch 1947)."""
    components = [(np.array([np.var(values, ddof=1) / len(values)]), len(values) - 1) for values in (a, b)]
    return float(t_test(np.array([np.mean(a) - np.mean(b)]), components).p[0])


def two_sided_p(t: Floats, degrees: Floats) -> Floats:
    """P(|T| >= t) for t >= 0 and degrees of freedom v >= 1, each (N,); the absolute error is below 1e-7.

    P(|T| < t) is 2 / B(1/2, v/2) times the integral of cos(x)^(v - 1) from 0 to arctan(t / sqrt(v)).
    """
    end = np.arctan(t / np.sqrt(degrees))[:, None]  # (N, 1)
    x = end / 2 * (1 + _NODES)
    integral = (end / 2 * _WEIGHTS * np.exp((degrees[:, None] - 1) * np.log(np.cos(x)))).sum(axis=1)
    log_beta = [math.lgamma(0.5) + math.lgamma(v / 2) - math.lgamma((v + 1) / 2) for v in degrees]
    return np.clip(1 - 2 * integral / np.exp(log_beta), 0, 1)


def t_quantile(degrees: Floats, level: float = 0.05) -> Floats:
    """The t (N,) with P(|T| >= t) = `level`, by bisection; for levels of at least 0.05."""
    low, high = np.zeros_like(degrees), np.full_like(degrees, _LARGEST_QUANTILE)
    for _ in range(50):
        middle = (low + high) / 2
        above = two_sided_p(middle, degrees) > level
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return (low + high) / 2
