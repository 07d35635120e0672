"""Student's t beside printed tables and closed forms; the t test beside Welch's example on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest

from captioning.metrics.student_t import t_quantile, t_test, two_sided_p, welch_p


def test_quantiles_as_in_printed_tables() -> None:
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 7: 2.365, 10: 2.228, 30: 2.042, 120: 1.980, 1e6: 1.960}
    np.testing.assert_allclose(t_quantile(np.array([*map(float, table)])), [*table.values()], atol=5e-4)


def test_p_as_in_closed_forms() -> None:
    """With 1 degree of freedom the Cauchy distribution, with 2 an algebraic one, with many the normal."""
    t = np.array([0.0, 0.3, 1.0, 2.7, 31.0, 1e4])
    one, two, many = (two_sided_p(t, np.full_like(t, degrees)) for degrees in (1.0, 2.0, 1e9))
    np.testing.assert_allclose(one, [1 - 2 / math.pi * math.atan(value) for value in t], atol=1e-7)
    np.testing.assert_allclose(two, [1 - value / math.sqrt(2 + value**2) for value in t], atol=1e-7)
    np.testing.assert_allclose(many, [math.erfc(value / math.sqrt(2)) for value in t], atol=1e-6)


def test_components_are_summed_and_their_degrees_combined() -> None:
    test = t_test(np.array([3.0, 0.0, 2.0]), [(np.array([2.0, 0, 0]), 2), (np.array([1.0, 0, 0]), 5)])
    assert test.degrees[0] == pytest.approx(9 / (4 / 2 + 1 / 5))
    assert test.p[0] == two_sided_p(np.array([3 / math.sqrt(3)]), test.degrees[:1])[0]
    assert test.margin[0] == pytest.approx(math.sqrt(3) * t_quantile(test.degrees[:1])[0])
    # without any variance every difference is certain
    assert test.p[1:] == pytest.approx([1, 0]) and test.margin[1:].tolist() == [0, 0]


def test_welch_on_paper() -> None:
    """Means 5 and 2 of 3 values, variances 1 and 1: t = 3 / sqrt(2 / 3) with 4 degrees of freedom."""
    t, degrees = 3 / math.sqrt(2 / 3), 4.0
    # P(|T| >= t) with 4 degrees of freedom: 1 - u (3 - u^2) / 2 with u = t / sqrt(4 + t^2)
    u = t / math.sqrt(degrees + t * t)
    assert welch_p([4, 5, 6], [1, 2, 3]) == pytest.approx(1 - u * (3 - u * u) / 2, abs=1e-9)
    assert welch_p([1, 1], [1, 1]) == 1 and welch_p([2, 2], [1, 1]) == pytest.approx(0, abs=1e-9)
