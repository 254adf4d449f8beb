"""Arrivals that all take one plan, played by the stages' rules."""

from __future__ import annotations

import pytest

from diffusion_edge.bench.routing.foretold import (
    all_plans,
    best_fixed,
    finishes,
    highest_rate,
    unit_arrivals,
    unloaded_s,
)
from diffusion_edge.bench.routing.live import Wanted
from diffusion_edge.plan import Plan
from tests.routing.views import stage, view

WANTED = Wanted(steps=10, deadline_s=4.0, quality_floor=0.0)
VIEW = view(stage("tower", 0.2, encode_s=0.1), stage("hall", 0.1), delay_s=0.5)


def test_arrivals_pass_one_stage_after_the_other() -> None:
    done = finishes(Plan.parse("tower:4,hall:6"), [0.0, 20.0], WANTED, VIEW)
    # two texts of 0.1, 4 x 0.2, 0.5, 6 x 0.1
    assert done == pytest.approx([2.1, 22.1], abs=1e-3)
    both = finishes(Plan.parse("hall:10"), [0.0, 0.5], WANTED, VIEW)
    assert max(both) == pytest.approx(2.0)
    assert unloaded_s("tower", WANTED, VIEW) == pytest.approx(2.2)


def test_every_plan_is_among_those_that_are_ranked() -> None:
    plans = list(all_plans(VIEW, 4))
    assert len(plans) == len({str(plan) for plan in plans}) == 2 + 2 * 3
    three = view(stage("phone", 0.2), stage("tower", 0.2), stage("hall", 0.1))
    assert len(list(all_plans(three, 4))) == 3 + 6 * 3 + 6 * 3


def test_the_best_fixed_plans_keep_up_with_the_arrivals() -> None:
    """One a second is more than the tower alone can do, and the hall alone just can."""
    due = [1.1 * k for k in range(40)]
    plans = [
        Plan.parse(each) for each in ("tower:10", "hall:10", "tower:1,hall:9", "tower:9,hall:1")
    ]
    best, second = best_fixed(plans, due, WANTED, VIEW, 2)
    assert {str(best), str(second)} == {"hall:10", "tower:1,hall:9"}


def test_the_highest_rate_in_turn_is_where_a_stage_fills() -> None:
    """The tower, 2.2 s a picture, gets every second one and may be 4 s late: about 0.9 a second."""
    unit = unit_arrivals(400, "a seed")
    found = highest_rate(("hall", "tower"), unit, 0.95, WANTED, VIEW)
    assert 0.3 < found < 1.0
    patient = Wanted(steps=10, deadline_s=8.0, quality_floor=0.0)
    assert highest_rate(("hall", "tower"), unit, 0.95, patient, VIEW) > found


def test_unit_arrivals_are_one_a_second() -> None:
    unit = unit_arrivals(2000, "a seed")
    assert unit == sorted(unit)
    assert unit[-1] == pytest.approx(2000, rel=0.05)
    assert unit != unit_arrivals(2000, "another")
