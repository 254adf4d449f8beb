"""Statistics against examples that were worked out by hand."""

from __future__ import annotations

from math import inf

import pytest

from diffusion_edge.bench.proof.statistics import holm, median_interval, paired


def test_holm_by_hand() -> None:
    """0.01 x 4 = 0.04; 0.02 x 3 = 0.06; 0.03 x 2 = 0.06; 0.04 x 1 = 0.04, which may not be below
    the one before it."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_paired_interval_by_hand() -> None:
    """1, 2, 3, 4, 5: mean 3, standard error sqrt(2.5 / 5), t with 4 degrees of freedom 2.776."""
    found = paired([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    assert found.interval == pytest.approx((3 - 2.776 * 0.70711, 3 + 2.776 * 0.70711), abs=1e-3)
    assert found.p == pytest.approx(0.0132, abs=1e-4)


def test_of_alike_differences_nothing_is_left_to_chance_and_of_one_nothing_is_known() -> None:
    assert paired([0.5, 0.5, 0.5]).p == 0.0
    assert paired([0.0, 0.0]).p == 1.0
    assert paired([0.5]).interval == (-inf, inf)


def test_the_interval_of_a_median_has_it_inside() -> None:
    low, high = median_interval([*range(1, 100)])
    assert 35 < low < 50 < high < 65
