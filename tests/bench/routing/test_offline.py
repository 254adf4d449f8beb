"""What a search with all the time it wants gets in time of requests that come at once."""

from __future__ import annotations

import pytest

from diffusion_edge.bench.routing.foretold import all_plans
from diffusion_edge.bench.routing.live import Wanted
from diffusion_edge.bench.routing.offline import most_in_time, played
from diffusion_edge.plan import Plan
from tests.routing.views import stage, view

VIEW = view(stage("tower", 0.2), stage("hall", 0.1))


def wanted(deadline_s: float) -> Wanted:
    return Wanted(steps=10, deadline_s=deadline_s, quality_floor=0.0)


def test_stages_are_played_one_after_the_other() -> None:
    plans = [Plan.parse("tower:4,hall:6"), Plan.parse("hall:10")]
    found = played(plans, ("tower", "hall"), wanted(9.0), VIEW)
    assert found.idle_s == {"tower": pytest.approx(0.8), "hall": pytest.approx(1.6)}
    assert max(found.done_s) == pytest.approx(1.6, abs=1e-3)


def test_whole_pictures_side_by_side() -> None:
    """Within 2.05 s the hall makes two pictures and the tower one, if none is handed off."""
    whole = [Plan.parse("tower:10"), Plan.parse("hall:10")]
    assert most_in_time(9, whole, wanted(2.05), VIEW) == 3
    assert most_in_time(2, whole, wanted(2.05), VIEW) == 2
    assert most_in_time(9, whole, wanted(0.5), VIEW) == 0


def test_what_is_left_over_on_two_stages_makes_one_more() -> None:
    """In 1.55 s whole pictures are one on the hall alone; the tower's first steps spare it some."""
    whole = [Plan.parse("tower:10"), Plan.parse("hall:10")]
    assert most_in_time(9, whole, wanted(1.55), VIEW) == 1
    assert most_in_time(9, list(all_plans(VIEW, 10)), wanted(1.55), VIEW) == 2
