"""Medians, ratios and turns: pure."""

from __future__ import annotations

import math

import pytest

from diffusion_edge.bench.timing import check_equal, interleaved, rows, turned, worst_of
from diffusion_edge.errors import UnequalArm


def test_each_arm_comes_first_in_turn() -> None:
    assert [turned("abc", turn) for turn in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_rounds_go_through_all_arms_in_turns() -> None:
    ran: list[str] = []
    seconds = iter(range(1, 100))

    def arm(name: str) -> float:
        ran.append(name)
        return float(next(seconds))

    taken = interleaved(
        {"a": lambda: arm("a"), "b": lambda: arm("b")}, 3, lambda turn: ran.append(str(turn))
    )
    assert ran == ["0", "a", "b", "1", "b", "a", "2", "a", "b"]
    assert taken == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    first, second = rows(
        {"stock": [4.0, 6.0, 100.0], "ours": [1.0, 3.0, 10.0]}, {"stock": 0.0, "ours": 1e-6}, "f"
    )
    assert (first.ratio, first.ratios) == (1.0, (1.0, 1.0))
    assert (second.ratio, second.ratios) == (4.0, (2.0, 10.0))
    assert (second.median_s, second.lowest_s, second.highest_s) == (3.0, 1.0, 10.0)
    assert (second.arm, second.precision, second.error) == ("ours", "f", 1e-6)


def test_the_worst_error_is_told_above_the_bound() -> None:
    assert check_equal("ours", {"a": 1e-6, "b": 2e-6}) == 2e-6
    with pytest.raises(UnequalArm, match=r"'ours' differs .* by 3\.0e-05 \(b;"):
        check_equal("ours", {"a": 1e-6, "b": 3e-5})


@pytest.mark.parametrize("place", range(3))
def test_an_error_that_is_no_number_is_the_worst_wherever_it_stands(place: int) -> None:
    errors = [1e-6, 1.0]
    errors.insert(place, math.nan)
    assert worst_of(errors) == place
    with pytest.raises(UnequalArm, match=rf"by nan \({'abc'[place]};"):
        check_equal("ours", dict(zip("abc", errors, strict=True)))


def test_the_bound_itself_is_equal() -> None:
    assert check_equal("ours", {"a": 1e-5}) == 1e-5
    assert check_equal("ours", {"a": 2.0}, 2.0) == 2.0
