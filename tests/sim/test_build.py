"""From a scenario to a world: who sees which stages, how links go, and what is asked."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice
from typing import Any

import pytest

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.sim.build import Asks, Family, stream, world
from diffusion_edge.sim.faults import Fault
from diffusion_edge.sim.scenario import Scenario
from diffusion_edge.sim.ways import FOREVER_S, Way
from tests.api.fakes import settings
from tests.routing.views import request, symmetric

from .worlds import carriage

FAMILY = Family(asked=request(), cells=64, quality=symmetric(), carriage=carriage)
BETWEEN = ["phone", "tower"]


def a_scenario(**changes: Any) -> Scenario:
    return Scenario.model_validate({"arrivals": {"rate": 2.0}} | changes)


def asks(seed: int = 0, **changes: Any) -> Asks:
    scenario = a_scenario(**changes)
    made = world(scenario, settings(), FAMILY, seed)
    return Asks(scenario, settings(), FAMILY, made, seed)


def test_without_sites_all_see_the_configs_stages() -> None:
    made = asks().world
    assert [group.stages for group in made.groups] == [("phone", "tower", "hall")]
    assert made.first[("phone", "tower")].bytes_per_s == 3e6
    assert set(made.ways) == set(made.first)


def test_of_many_sites_everybody_sees_some_and_those_that_are_alike_are_one_record() -> None:
    sites = {"count": {"phone": 40, "tower": 9, "hall": 3}, "sees": {"tower": 2}}
    made = asks(sites=sites).world
    assert len(made.groups) == 40
    assert len(made.stages) == 52
    for number, group in enumerate(made.groups):
        kinds = Counter(made.stages[name].stage for name in group.stages)
        assert kinds == {"phone": 1, "tower": 2, "hall": 1}
        assert group.stages[0] == f"phone-{number}"
    assert len({id(status) for status in made.stages.values()}) == 3
    assert len({name for group in made.groups for name in group.stages}) == 52
    assert ("phone-0", "phone-1") not in made.ways


def test_a_stage_without_stated_seconds_cannot_be_simulated() -> None:
    bare = settings(stages={"phone": {"tier": "device", "model": "device"}}, links=[])
    with pytest.raises(InvalidRequest, match="'phone' has no `emulate`"):
        world(a_scenario(), bare, FAMILY, 0)


@pytest.mark.parametrize("where", ["links", "faults"])
def test_names_that_the_config_lacks_are_told(where: str) -> None:
    wrong = {
        "links": {"links": [{"between": ["phone", "towel"], "bytes_per_s": 1e6}]},
        "faults": {"faults": [{"kind": "lost", "stage": "towel", "at_s": 1.0, "for_s": 1.0}]},
    }
    with pytest.raises(InvalidRequest, match="did you mean 'tower'"):
        asks(**wrong[where])


def passed_s(nbytes: float, at_s: float, **link: Any) -> float:
    made = asks(links=[{"between": BETWEEN, **link}]).world
    arrives_s, _ = Way(made.ways[("phone", "tower")]).carry(nbytes, at_s)
    return arrives_s - at_s


def test_links_go_as_the_scenario_says() -> None:
    assert passed_s(1e6, 3.0, bytes_per_s=1e6, delay_s=0.5) == pytest.approx(1.5)
    steps = {0.0: 1e6, 10.0: 1e5}
    assert passed_s(1e6, 3.0, kind="step", steps=steps) == pytest.approx(1.0)
    assert passed_s(1e6, 9.5, kind="step", steps=steps) == pytest.approx(0.5 + 5.0)
    assert passed_s(1e6, FOREVER_S / 2, kind="step", steps=steps) == pytest.approx(10.0)
    outage = {"kind": "outage", "bytes_per_s": 1e6, "every_s": 10.0, "for_s": 4.0}
    assert passed_s(2e6, 5.0, **outage) == pytest.approx(1.0 + 4.0 + 1.0)
    markov = {"kind": "markov", "rates": [1e5, 1e6], "stay_s": 2.0}
    assert 1.0 <= passed_s(1e6, 0.0, **markov) <= 10.0


def test_a_link_that_is_cut_lets_nothing_pass() -> None:
    made = asks(links=[{"between": BETWEEN, "bytes_per_s": 1e6}]).world
    way = Way(made.ways[("phone", "tower")], cuts=((1.0, 5.0), (8.0, 9.0)))
    assert way.carry(2e6, 0.0) == (pytest.approx(6.0), 0.0)
    assert way.carry(1e6, 2.0) == (pytest.approx(7.0), pytest.approx(4.0))
    assert way.carry(2e6, 7.0) == (pytest.approx(10.0), 0.0)


def test_faults_are_of_the_worlds_stages() -> None:
    told = {"kind": "cut", "between": BETWEEN, "at_s": 2.0, "for_s": 3.0}
    (fault,) = asks(faults=[told]).world.faults
    assert isinstance(fault, Fault)
    assert set(fault.pairs) == {("phone", "tower"), ("tower", "phone")}


def test_all_policies_are_asked_the_same() -> None:
    mixed = {"count": 30, "steps": {20: 1, 10: 1}, "deadline_s": {4: 1, 9: 1}}
    both = asks(requests=mixed)
    ours, theirs = list(both.by("elastic")), list(both.by("earliest"))
    assert [at_s for at_s, _, _ in ours] == [at_s for at_s, _, _ in theirs]
    for (_, one, _), (_, other, _) in zip(ours, theirs, strict=True):
        assert (one.policy, other.policy) == ("elastic", "earliest")
        assert (one.steps, one.deadline_s, one.seed) == (other.steps, other.deadline_s, other.seed)
    assert {one.steps for _, one, _ in ours} == {10, 20}
    assert list(asks(1, requests=mixed).by("elastic")) != ours


def test_the_number_of_steps_is_left_to_those_who_choose_it() -> None:
    """Premises: the quality table knows plans of 20 steps."""
    free = asks(requests={"count": 1, "steps": 10, "free_steps": True})
    ((_, elastic, _),), ((_, in_turn, _),) = free.by("elastic"), free.by("in-turn")
    assert (elastic.steps, elastic.free_steps) == (10, (10, 20))
    assert in_turn.free_steps == ()


def test_recordings_that_begin_anywhere_begin_elsewhere_with_every_seed() -> None:
    trace = {
        "kind": "trace",
        "rate": 2.0,
        "file": "loadtest/traces/arrivals/azure_llm_code_2023.csv",
    }
    changes = {"anywhere": True, "arrivals": trace, "requests": {"count": 50}}
    gaps = set()
    for seed in range(3):
        times = [at_s for at_s, _, _ in asks(seed, **changes).by("elastic")]
        assert times[0] == 0.0
        assert len(times) / (times[-1] * 50 / 49) == pytest.approx(2.0)
        gaps.add(times[1] - times[0])
    assert len(gaps) > 1


def test_a_plan_for_all_is_over_the_stages_that_each_sees() -> None:
    sites = {"count": {"phone": 5, "tower": 4, "hall": 2}}
    for _, one, group in asks(sites=sites).by("phone:14,hall:6"):
        assert one.policy == "fixed"
        assert one.plan is not None
        assert [span.stage for span in one.plan.spans] == [group.stages[0], group.stages[2]]
    with pytest.raises(InvalidRequest, match="there is no stage 'attic'"):
        list(asks().by("attic:20"))


RATES: dict[str, dict[str, Any]] = {
    "poisson": {},
    "bursty": {"burst": 4},
    "diurnal": {"period_s": 50.0},
    "crowd": {"at_s": 1e6, "for_s": 1.0},
}


@pytest.mark.parametrize("kind", list(RATES))
def test_requests_come_at_the_rate_that_is_stated(kind: str) -> None:
    wanted = a_scenario(arrivals={"kind": kind, "rate": 4.0, **RATES[kind]}).arrivals
    times = list(islice(stream(wanted, random.Random(3)), 4000))
    assert times == sorted(times)
    assert len(times) / times[-1] == pytest.approx(4.0, rel=0.1)
