"""Policies that choose again while a request is on its way or after it, and those that learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diffusion_edge.config import Replan
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.plan import Plan
from diffusion_edge.routing.policies import rule
from diffusion_edge.routing.signals import Recording, Signals
from diffusion_edge.sim.loop import Simulation
from diffusion_edge.sim.replay import Replay, check
from diffusion_edge.sim.tally import Tally
from diffusion_edge.sim.ways import Rates
from diffusion_edge.sim.world import World
from diffusion_edge.traces import Trace
from diffusion_edge.view import View
from tests.routing.views import request, stage, view

from .worlds import a_world, arrivals, at_once

STEPS = 20
FALLS = tuple(1.0 / (k + 1) for k in range(STEPS - 1))
"""Changes that fall by more than 0.01 for long enough."""


def flat_at(position: int) -> tuple[float, ...]:
    """Of a picture whose output is flat when so many steps are done, and no earlier."""
    told = list(FALLS)
    told[position - 2] = told[position - 3] - 1e-3
    return tuple(told)


def replay(changes: Sequence[tuple[float, ...]], scores: Sequence[float]) -> Replay:
    """The same of all models, but that the reference's pictures score 1."""
    rows = [
        Recording(
            model=model,
            steps=STEPS,
            scores=tuple(1.0 for _ in scores) if model == "cloud" else tuple(scores),
            changes=tuple(changes),
        )
        for model in ("device", "edge", "cloud")
    ]
    signals = Signals(
        family="f", metric="m", size=64, seed=0, prompts="p", weights="", rows=tuple(rows)
    )
    return Replay(signals, "cloud")


def played(world: World, policy: str, pictures: Sequence[int] = (0,), **asked: Any) -> Simulation:
    simulation = Simulation(world)
    common: dict[str, Any] = {"policy": policy, "deadline_s": 60.0, "quality_floor": 0.0} | asked
    simulation.play(at_once(world, [request(seed=k, **common) for k in pictures]))
    return simulation


def fixed(plan: str, world: World, **asked: Any) -> Simulation:
    return played(world, "fixed", plan=Plan.parse(plan), **asked)


# ---------------------------------------------------------------------------- at step boundaries


@pytest.mark.parametrize("position", [4, 7, 11])
def test_a_revised_request_goes_as_one_that_had_that_plan_from_the_start(position: int) -> None:
    world = replace(a_world(), replay=replay([flat_at(position)], [0.5]))
    revised = played(world, "sr-diffusion").tally
    plan = f"hall:{position},phone:{STEPS - position}"
    wanted = fixed(plan, world).tally
    assert revised.latency_s[0] == pytest.approx(wanted.latency_s[0])
    assert revised.cost[0] == pytest.approx(wanted.cost[0])
    assert revised.quality_bound[0] == pytest.approx(wanted.quality_bound[0])
    assert revised.plans == {plan: 1}


def test_one_that_is_never_flat_switches_last() -> None:
    world = replace(a_world(), replay=replay([FALLS[:8] + FALLS[:11]], [0.5]))
    tally = played(world, "sr-diffusion").tally
    wanted = fixed("hall:12,phone:8", world).tally
    assert tally.latency_s[0] == pytest.approx(wanted.latency_s[0])
    assert tally.plans == {"hall:12,phone:8": 1}


def test_each_image_goes_by_its_own_picture() -> None:
    """Two requests and two images of one; the dearer half of the images costs what it costs."""
    world = replace(a_world(), replay=replay([flat_at(5), flat_at(9)], [0.5, 0.5]))
    two = played(world, "sr-diffusion", pictures=(0, 1)).tally
    assert set(two.plans) == {"hall:5,phone:15", "hall:9,phone:11"}
    both = played(world, "sr-diffusion", images=2).tally
    costs = [fixed(f"hall:{n},phone:{STEPS - n}", world, images=2).tally.cost[0] for n in (5, 9)]
    assert both.cost[0] == pytest.approx(sum(costs) / 2)
    assert both.fates() == {"served": 1}


def test_many_at_once_all_end_and_nobody_twice() -> None:
    changes = [flat_at(k) for k in (4, 5, 8, 11)]
    world = replace(a_world(), replay=replay(changes, [0.5] * 4))
    simulation = Simulation(world)
    asked = {"policy": "sr-diffusion", "deadline_s": 400.0}
    came = (
        (at_s, replace(one, seed=k), group)
        for k, (at_s, one, group) in enumerate(arrivals(world, 40, 0.7, **asked))
    )
    tally = simulation.play(came)
    assert tally.fates() == {"served": 40}
    assert sum(tally.plans.values()) == 40


# ---------------------------------------------------------------------------- at the pictures


def test_what_scores_too_low_is_made_again_at_the_cost_of_both() -> None:
    world = replace(a_world(), replay=replay([FALLS] * 2, [0.3, 1.0]))
    small, large = fixed("phone:20", world).tally, fixed("hall:20", world).tally
    again = played(world, "cascade", pictures=(0,)).tally
    assert again.latency_s[0] == pytest.approx(small.latency_s[0] + large.latency_s[0], rel=0.02)
    assert again.cost[0] == pytest.approx(small.cost[0] + large.cost[0])
    assert (again.quality_bound[0], again.plans) == (1.0, {"hall:20": 1})
    once = played(world, "cascade", pictures=(1,)).tally
    assert once.latency_s[0] == pytest.approx(small.latency_s[0])
    assert once.cost[0] == pytest.approx(small.cost[0])
    assert (once.quality_bound[0], once.plans) == (1.0, {"phone:20": 1})


def test_what_there_is_no_time_to_make_again_is_given_out_as_it_is() -> None:
    world = replace(a_world(), replay=replay([FALLS], [0.3]))
    alone_s = fixed("phone:20", world).tally.latency_s[0]
    tally = played(world, "cascade", deadline_s=alone_s + 1.0).tally
    assert tally.latency_s[0] == pytest.approx(alone_s)
    assert tally.quality_bound[0] == pytest.approx(0.4)  # of the plan; the picture is below that


# ---------------------------------------------------------------------------- learning


def test_the_bandit_learns_in_a_run_and_the_same_every_time() -> None:
    runs = []
    for _ in range(2):
        world = a_world()
        simulation = Simulation(world)
        simulation.play(arrivals(world, 30, 0.3, policy="linucb", quality_floor=0.75))
        assert set(simulation._again.learned) == {"linucb"}
        runs.append(simulation.tally.plans)
    assert runs[0] == runs[1]
    assert len(runs[0]) > 1


# ---------------------------------------------------------------------------- what is replayed


def seen() -> View:
    return view(stage("phone", 0.4), stage("hall", 0.05))


def test_the_recording_of_the_model_that_makes_the_step() -> None:
    known = replay([FALLS, flat_at(5)], [0.2, 0.4])
    plan, asked = Plan.parse("hall:12,phone:8"), request(seed=3)
    told = known.standing(plan, 6, asked, 0, seen())
    assert (told.plan, told.position, told.changes) == (plan, 6, flat_at(5)[:5])
    assert known.standing(plan, 6, asked, 1, seen()).changes == FALLS[:5]


def test_of_another_number_of_steps_the_same_share_of_the_way() -> None:
    told = replay([FALLS], [0.2]).standing(Plan.parse("hall:6,phone:4"), 9, request(), 0, seen())
    assert told.changes == tuple(FALLS[int(k * 19 / 9)] for k in range(8))


def test_the_score_of_a_request_is_that_of_its_worst_picture() -> None:
    known = replay([FALLS] * 3, [0.9, 0.2, 0.8])
    assert known.score(Plan.parse("phone:20"), request(seed=2, images=2), seen()) == 0.8
    assert known.score(Plan.parse("phone:20"), request(seed=1, images=2), seen()) == 0.2
    assert known.relative(0.2, 20) == 0.2


def test_a_policy_that_has_nothing_to_look_at_is_refused() -> None:
    once = [(name, rule(name)) for name in ("elastic", "linucb", "t-stitch")]
    check(once, None)
    check([("cascade", rule("cascade"))], replay([FALLS], [0.5]))
    for name in ("cascade", "sr-diffusion"):
        with pytest.raises(InvalidRequest, match=rf"'{name}' looks at what .*`signals:`"):
            check([(name, rule(name))], None)


# ---------------------------------------------------------------------------- in flight


def in_flight(most: int) -> Tally:
    """The way from hall to phone dies while a stated plan is on it. An image that was to go there
    later knows from what does not come."""
    world = a_world("phone", "hall", measure_links=True, replan=Replan(most=most))
    dead = Rates(Trace(np.array([0.0, 1.4]), np.array([1.1e6, 1e3]), 3600.0), 0.03)
    world = replace(world, ways={**world.ways, ("hall", "phone"): dead})
    simulation, group = Simulation(world), world.groups[0]
    stated = request(request_id="stated", policy="fixed", plan=Plan.parse("hall:2,phone:1,hall:17"))
    free = request(request_id="free", policy="elastic", deadline_s=5.0, quality_floor=0.4)
    simulation.play(iter([(1.0, stated, group), (1.3, free, group)]))
    return simulation.tally


def test_an_image_goes_another_way_when_its_link_has_collapsed() -> None:
    never, twice = in_flight(0), in_flight(2)
    assert (list(never.replans), list(twice.replans)) == ([0, 0], [0, 1])  # what is stated stays
    assert never.fates() == {"deadline_exceeded": 2}
    assert twice.fates() == {"deadline_exceeded": 1, "served": 1}
    assert twice.in_time().tolist() == [False, True]
    assert (never.plan(1), twice.plan(1)) == ("hall:19,phone:1", "hall:20")
    assert twice.predicted_s[1] == never.predicted_s[1]
    assert twice.cost[1] > never.cost[1]
