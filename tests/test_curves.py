"""Reading off seconds that were not measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_edge.curves import cells_of, curve, nearest_size, scaled, seconds


@pytest.mark.parametrize(
    ("rows", "expected"), [(2, 1.0), (4, 1.4), (3, 1.2), (2.5, 1.1), (1, 0.5), (8, 2.8), (6, 2.1)]
)
def test_rows_between_and_beyond_the_known(rows: float, expected: float) -> None:
    assert seconds({2: 1.0, 4: 1.4}, rows) == pytest.approx(expected)


@given(st.dictionaries(st.integers(1, 64), st.floats(0.001, 10), min_size=1), st.integers(1, 200))
def test_seconds_lie_within_what_is_known_between_the_ends(
    known: dict[int, float], rows: int
) -> None:
    if min(known) <= rows <= max(known):
        assert min(known.values()) * 0.999 <= seconds(known, rows) <= max(known.values()) * 1.001


def test_a_size_has_its_own_curve_or_that_of_as_many_cells() -> None:
    by_cells = {64: {1: 1.0, 2: 1.5, 4: 2.0}, 1024: {1: 9.0}}
    assert curve(by_cells, 1024) == {1: 9.0}
    assert curve(by_cells, 128) == {1: 1.5, 2: 2.0, 4: 4.0}
    assert curve(by_cells, 32) == {1: 0.5, 2: 1.0, 4: 1.5}
    assert curve(by_cells, 2048) == {1: 18.0}


def test_a_picture_of_an_unknown_size_takes_as_much_as_it_has_cells() -> None:
    assert scaled({64: 1.0, 256: 3.0}, 128) == 1.5


def test_near_is_what_differs_by_the_smallest_factor() -> None:
    assert nearest_size([64, 256], 144) == 256
    assert nearest_size([64, 256], 120) == 64


def test_cells_leave_out_the_channels() -> None:
    assert cells_of((4, 8, 16)) == 128
    assert cells_of((16, 5, 8, 8)) == 320
