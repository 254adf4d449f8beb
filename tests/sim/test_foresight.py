"""Hindsight and the oracle over real runs: what they earn beside every policy, and the ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest

from diffusion_edge.plan import Plan
from diffusion_edge.sim import foresight
from diffusion_edge.sim.loop import Arrival
from diffusion_edge.sim.oracle import Answer, Found
from diffusion_edge.sim.world import World

from .worlds import a_world, arrivals

POLICIES = ("elastic", "earliest", "in-turn", "t-stitch", "hybrid-sd", "linucb", "cloud-only")


def asked(world: World, count: int, rate: float = 1.5, seed: int = 0) -> list[Arrival]:
    return list(arrivals(world, count, rate, seed, quality_floor=0.75))


def told(world: World, came: Sequence[Arrival], policies: Sequence[str]) -> list[Found]:
    runs = {
        name: foresight.run(world, [(t, replace(one, policy=name), g) for t, one, g in came], 0)
        for name in policies
    }
    return [foresight.found(name, run, world, came) for name, run in runs.items()]


def test_of_six_requests_the_oracle_earns_as_much_as_all_combinations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Premises: each may be made on the tower or in the hall: 64 runs."""
    world = a_world("tower", "hall")
    came, policies = asked(world, 6), ("in-turn", "cloud-only")
    may: list[Answer] = [Plan.of((("tower", 20),)), Plan.of((("hall", 20),))]
    came = [(t, replace(one, quality_floor=0.5), g) for t, one, g in came]
    monkeypatch.setattr(foresight, "candidates", lambda *_: may)
    known = told(world, came, policies)
    found = foresight.with_foresight(world, came, known, plays=64)
    best = max(
        sum(foresight.answered(world, came, answers)[1]) for answers in product(may, repeat=6)
    )
    assert found.total == pytest.approx(best)
    assert found.total > max(each.total for each in known) + 0.1


@pytest.mark.parametrize("seed", [1, 2])
def test_it_is_never_below_any_policy_nor_above_the_ceiling(seed: int) -> None:
    world = a_world()
    came = asked(world, 12, seed=seed)
    known = told(world, came, POLICIES)
    found = foresight.with_foresight(world, came, known, plays=60)
    ceiling = foresight.bound(world, came)
    assert max(each.total for each in known) <= found.total <= ceiling + 1e-6
    assert found.total > 0


def test_hindsight_is_a_fixed_plan_and_no_fixed_plan_of_its_coarse_ones_is_better() -> None:
    world = a_world("phone", "hall")
    came = asked(world, 8, rate=0.4)
    runs: list[None] = []
    plan, run = foresight.with_hindsight(world, came, 0, lambda: runs.append(None))
    total = sum(foresight.earned(run, world, came))
    assert 3 < len(runs) <= 82
    assert {run.plan(number) for number in range(len(came))} == {str(plan)}
    for text in ("hall:20", "phone:4,hall:16", "phone:8,hall:12", "hall:16,phone:4"):
        _, other = foresight.answered(world, came, (Plan.parse(text),) * len(came))
        assert total >= sum(other) - 1e-9


def test_what_a_run_earns() -> None:
    """Premises: in the cloud all steps cost what cloud-only costs; the second comes too late."""
    world = a_world("hall")
    first, second = asked(world, 2, rate=100.0)
    late = second[0], replace(second[1], deadline_s=0.5), second[2]
    plan = Plan.of((("hall", 20),))
    _, total = foresight.answered(world, [first, late, second], (plan, plan, None))
    assert total == pytest.approx([0.5, -0.5, 0.0], abs=1e-3)


def test_blind_runs_do_what_fixed_plans_do_where_all_is_in_time() -> None:
    """To the last bit, with queues and hand-offs, though nobody looks."""
    world = a_world()
    came = asked(world, 20, rate=0.4)
    plan = Plan.of((("phone", 8), ("hall", 12)))
    fixed = [(t, replace(one, policy="fixed", plan=plan, deadline_s=60.0), g) for t, one, g in came]
    routed = foresight.run(world, fixed, 0)
    blind, _ = foresight.answered(world, fixed, (plan,) * len(came))
    assert list(blind.latency_s) == list(routed.latency_s)
    assert list(blind.cost) == list(routed.cost)
    assert list(blind.quality_bound) == list(routed.quality_bound)


def test_of_many_requests_the_oracle_betters_the_best_in_few_runs() -> None:
    world = a_world()
    came = asked(world, 60, rate=1.0)
    known = told(world, came, ["elastic", "cloud-only"])
    found = foresight.with_foresight(world, came, known, plays=30)
    assert found.total > max(each.total for each in known) + 0.1
    assert found.total <= foresight.bound(world, came)
    _, again = foresight.answered(world, came, found.answers)
    assert sum(again) == pytest.approx(found.total)
