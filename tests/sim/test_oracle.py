"""The oracle against all there is, where all can be tried; the best fixed plan; the ceiling."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest

from diffusion_edge.plan import Plan
from diffusion_edge.routing.cost import full_s
from diffusion_edge.sim import hindsight
from diffusion_edge.sim.ceiling import ceiling
from diffusion_edge.sim.oracle import Answer, Answers, Found, Play, Plays, again, oracle
from tests.routing.views import request, stage, symmetric, view

MAY: Sequence[Answer] = (
    None,
    Plan.parse("phone:20"),
    Plan.parse("tower:20"),
    Plan.parse("tower:10,hall:10"),
)
TAKES = {"phone": 2.0, "tower": 1.0, "hall": 0.6}
COSTS = {"phone": 0.0, "tower": 0.3, "hall": 1.0}


def queues(seed: int, requests: int = 6) -> Play:
    """Stages that take one after another, first come first served; arrivals and deadlines are
    drawn. In time earns 1, less what the plan costs."""
    rng = random.Random(seed)
    comes = sorted(rng.random() * requests * 0.5 for _ in range(requests))
    patience = [rng.uniform(1.0, 3.0) for _ in range(requests)]

    def play(answers: Answers) -> list[float]:
        free_s, earned = dict.fromkeys(TAKES, 0.0), []
        for came_s, waits_s, plan in zip(comes, patience, answers, strict=True):
            if plan is None:
                earned.append(0.0)
                continue
            now = came_s
            for span in plan.spans:
                share = span.steps / plan.steps
                now = free_s[span.stage] = max(now, free_s[span.stage]) + TAKES[span.stage] * share
            paid = sum(COSTS[s.stage] * s.steps for s in plan.spans) / plan.steps
            earned.append(float(now - came_s <= waits_s) - paid / 2)
        return earned

    return play


def best_of_all(play: Play) -> float:
    return max(sum(play(answers)) for answers in product(MAY, repeat=6))


def policies(play: Play, seed: int) -> list[Found]:
    """One that answers all alike, and one that draws its answers."""
    rng = random.Random(f"{seed} policy")
    alike: Answers = (MAY[2],) * 6
    drawn = tuple(rng.choice(MAY) for _ in range(6))
    return [Found(name, a, tuple(play(a))) for name, a in (("alike", alike), ("drawn", drawn))]


@pytest.mark.parametrize("seed", range(4))
def test_of_six_requests_it_earns_as_much_as_the_best_of_all_combinations(seed: int) -> None:
    play = queues(seed)
    found = oracle(policies(play, seed), [MAY] * 6, play, most=len(MAY) ** 6)
    assert found.total == pytest.approx(best_of_all(play))
    assert sum(play(found.answers)) == pytest.approx(found.total)


def test_where_not_all_can_be_tried_it_mostly_finds_the_best_and_never_more() -> None:
    """Half of the plays that all combinations would need."""
    hits, seeds = 0, range(100, 110)
    for seed in seeds:
        play, found = queues(seed), policies(queues(seed), seed)[0]
        bettered = again(found, [list(MAY)] * 6, Plays(play, len(MAY) ** 6 // 2))
        best = best_of_all(play)
        assert found.total <= bettered.total <= best + 1e-9
        hits += bettered.total > best - 1e-9
    assert hits >= 8


@pytest.mark.parametrize("most", [0, 1, 3, 40])
def test_it_is_never_below_a_policy_however_few_plays_it_has(most: int) -> None:
    """Also below a run of a policy that its answers, played, do not earn."""
    for seed in range(20):
        play = queues(seed, 6)
        known = policies(play, seed)
        luck = Found("luck", known[1].answers, tuple(e + 0.5 for e in known[1].earned))
        for told in (known, [*known, luck]):
            found = oracle(told, [MAY] * 6, play, most)
            assert found.total >= max(each.total for each in told)


def test_no_more_plays_than_it_may_and_none_twice() -> None:
    asked: list[Answers] = []
    play = queues(1)

    def counted(answers: Answers) -> Sequence[float]:
        asked.append(answers)
        return play(answers)

    oracle(policies(play, 1), [MAY] * 6, counted, most=50)
    assert len(asked) == len(set(asked)) <= 50


# ---------------------------------------------------------------------------- hindsight


def a_plan(text: str) -> Plan:
    return Plan.parse(text, reason="")


def test_hindsight_finds_the_best_fixed_plan_and_tries_few() -> None:
    """Premises: 1,143 plans; what a plan is worth falls with the distance from one of them."""
    every = list(hindsight.every(("phone", "tower", "hall"), 20))
    assert len(every) == len(set(every)) == 3 + 6 * 19 + 6 * 171
    best, tried = a_plan("tower:7,hall:13"), []

    def worth(plan: Plan) -> float:
        tried.append(plan)
        stages = [span.stage for span in plan.spans]
        return -abs(plan.spans[0].steps - 7) - 20.0 * (stages != ["tower", "hall"])

    assert hindsight.hindsight(every, worth) == (best, 0.0)
    assert 40 <= len(tried) == len(set(tried)) <= 40 + 5 * 8


def test_hindsight_keeps_to_the_plans_that_it_may_take() -> None:
    few = [a_plan(plan) for plan in ("hall:20", "phone:3,hall:17", "phone:4,hall:16")]
    found, _ = hindsight.hindsight(few, lambda plan: float(plan.spans[0].steps == 3))
    assert str(found) == "phone:3,hall:17"


def test_coarse_plans_are_forty_and_of_all_kinds() -> None:
    found = hindsight.coarse(list(hindsight.every(("phone", "tower", "hall"), 20)))
    assert len(found) == len(set(found)) == 40
    assert [sum(len(plan.spans) == n for plan in found) for n in (1, 2, 3)] == [3, 24, 13]
    assert len({tuple(span.stage for span in plan.spans) for plan in found}) == 15
    two = list(hindsight.every(("phone", "hall"), 20))
    assert len(hindsight.coarse(two)) == 40 == len(set(two))


def test_what_is_beside_a_plan() -> None:
    near = set(map(str, hindsight.beside(Plan.parse("phone:1,hall:19"))))
    assert near == {"phone:2,hall:18", "phone:3,hall:17"}
    assert len(list(hindsight.beside(Plan.parse("phone:5,tower:5,hall:10")))) == 8
    assert not list(hindsight.beside(Plan.parse("hall:20")))


# ---------------------------------------------------------------------------- the ceiling

ONE = {"hall": 1}


def test_where_there_is_plenty_everybody_gets_the_cheapest_plan() -> None:
    """Premises: the cheapest plan above the floor is all in the cloud, at half a point."""
    seen = view(stage("hall", 0.05))
    arrivals = [(10.0 * k, request(deadline_s=9.0)) for k in range(5)]
    assert ceiling(arrivals, seen, ONE, symmetric()) == pytest.approx(5 * 0.5)


def test_where_there_is_little_no_more_than_can_be_made() -> None:
    """Premises: each takes 1 s of one stage; 12 s pass from the first arrival to the last
    deadline, so 12 of 40 can be in time at most."""
    seen = view(stage("hall", 0.05))
    line = full_s(seen.stages["hall"], True, 1, seen)
    assert line.start + 20 * line.step + line.end == pytest.approx(1.0)
    arrivals = [(0.25 * k, request(deadline_s=2.25)) for k in range(40)]
    found = ceiling(arrivals, seen, ONE, symmetric())
    assert 12 * 0.5 <= found <= 1.02 * 12 * 0.5
    assert ceiling(arrivals, seen, {"hall": 2}, symmetric()) == pytest.approx(2 * found, rel=0.02)


def test_what_cannot_be_in_time_or_reaches_no_floor_earns_nothing() -> None:
    seen = view(stage("phone", 0.4), stage("hall", 0.05))
    count = {"phone": 1, "hall": 1}
    for asked in (request(deadline_s=0.9), request(quality_floor=1.01)):
        assert ceiling([(0.0, asked)] * 3, seen, count, symmetric()) == pytest.approx(0.0, abs=1e-6)
    cheap = request(quality_floor=0.4, deadline_s=60.0)
    assert ceiling([(0.0, cheap)], seen, count, symmetric()) == pytest.approx(1.0)


def test_who_may_have_fewer_steps_may_earn_more() -> None:
    seen = view(stage("hall", 0.05))
    asked = request(deadline_s=9.0, quality_floor=0.0)
    fixed, free = (
        ceiling([(0.0, one)], seen, ONE, symmetric())
        for one in (asked, replace(asked, free_steps=(10, 20)))
    )
    assert fixed == pytest.approx(0.5)
    assert free == pytest.approx(0.75)
