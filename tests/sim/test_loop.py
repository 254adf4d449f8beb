"""The loop: everybody ends once, the same seed gives the same run, and what decides is what decides
in the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.calibration import Calibration
from diffusion_edge.routing.decide import decided
from diffusion_edge.routing.forecast import Run
from diffusion_edge.routing.learning import Learned
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.sim import loop
from diffusion_edge.sim.faults import Fault
from diffusion_edge.sim.loop import Arrival, Simulation
from diffusion_edge.sim.tally import SERVED, figures
from diffusion_edge.sim.ways import Rates, steady
from diffusion_edge.view import Choice, Link, View
from tests.routing.views import request

from .worlds import LINK, NBYTES, a_world, arrivals, at_once

FIXED = {"policy": "fixed", "plan": Plan.parse("tower:14,hall:6")}
UNLOADED_S = 0.043 + 14 * 0.085 + LINK.transfer_s(NBYTES) + 0.092 + 6 * 0.183 + 0.252


def test_a_request_alone_takes_what_its_parts_take() -> None:
    world = a_world()
    tally = Simulation(world).play(at_once(world, [request(request_id="0", **FIXED)]))
    assert list(tally.latency_s) == [pytest.approx(UNLOADED_S)]
    assert list(tally.predicted_s) == [pytest.approx(UNLOADED_S)]
    assert tally.plans == {"tower:14,hall:6": 1}
    assert tally.fates() == {SERVED: 1}


def test_packets_pass_one_after_another() -> None:
    """Two that leave the edge at the same time: the second one waits for the link."""
    slow = {("tower", "hall"): Rates(steady(1e5), 0.5), ("hall", "tower"): Rates(steady(1e5), 0.5)}
    world = a_world("tower", "hall", ways=slow, first=dict.fromkeys(slow, Link(1e5, 0.5)))
    asked = [request(request_id="0", images=2, deadline_s=60.0, **FIXED)]
    tally = Simulation(world).play(at_once(world, asked))
    steps_s = 2 * 0.043 + 28 * 0.085
    passes_s = NBYTES / 1e5
    assert tally.latency_s[0] > steps_s - 14 * 0.085 + 2 * passes_s + 0.5


@pytest.mark.parametrize("late", ["serve", "refuse"])
@pytest.mark.parametrize("policy", ["elastic", "earliest", "in-turn", "edge-only"])
def test_every_request_ends_once_whatever_happens(policy: str, late: str) -> None:
    """Under far too much load, with a stage lost, another one slow, and a link cut."""
    faults = [
        Fault("lost", 6.0, 5.0, stage="hall"),
        Fault("slow", 9.0, 10.0, stage="tower", times=3.0),
        Fault("cut", 3.0, 4.0, pairs=(("phone", "tower"), ("tower", "phone"))),
    ]
    world = a_world(faults=faults, measure_links=True)
    simulation = Simulation(world)
    asked = {"policy": policy, "late": late, "deadline_s": 6.0, "steps": 12}
    tally = simulation.play(arrivals(world, 24, 3.0, **asked))
    assert sum(tally.fates().values()) == len(tally) == 24
    assert "" not in tally.fates()
    assert tally.fates()[SERVED] > 0
    assert not any(len(polled.stage) for polled in simulation.stages.values()) or (
        set(tally.fates()) & {"deadline_exceeded", "stage_lost"}
    )
    assert len(simulation.board._promises) == 0
    assert figures(tally, policy, 0).lost == 24 - tally.fates()[SERVED]


def test_a_request_cannot_end_twice() -> None:
    world = a_world()
    tally = Simulation(world).play(arrivals(world, 2, 1.0, **FIXED))
    with pytest.raises(ValueError, match="ended twice"):
        tally.ended(0, SERVED, 1.0)


def outcome(seed: int, arrivals_seed: int) -> tuple[list[float], Counter[str]]:
    world = a_world(measure_links=True)
    tally = Simulation(world, seed).play(arrivals(world, 12, 1.2, arrivals_seed, policy="elastic"))
    return list(tally.latency_s), tally.plans


def test_the_same_seeds_give_the_same_run() -> None:
    assert outcome(0, 0) == outcome(0, 0)
    assert outcome(0, 0) != outcome(0, 1)


class Watched:
    """Decides as usual; keeps what was asked, seen and chosen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[ImageRequest, View, Choice]] = []
        monkeypatch.setattr(loop, "decided", self.decide)

    def decide(
        self,
        asked: ImageRequest,
        view: View,
        quality: QualityTable,
        known: Calibration,
        learned: Learned,
    ) -> Choice:
        choice = decided(asked, view, quality, known, learned)
        self.seen.append((asked, view, choice))
        return choice


@pytest.mark.parametrize("policy", ["elastic", "earliest"])
def test_policies_choose_as_from_a_view_made_by_hand(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of their own in place of those that the simulation shares between stages, so that
    nothing that was kept of these is used."""
    watched, world = Watched(monkeypatch), a_world(measure_links=True)
    Simulation(world).play(arrivals(world, 15, 1.5, policy=policy))
    assert len(watched.seen) == 15
    assert any(status.held for _, view, _ in watched.seen for status in view.stages.values())
    for asked, view, choice in watched.seen:
        by_hand = View(
            stages={name: replace(status, stage=name) for name, status in view.stages.items()},
            links=dict(view.links),
            price_per_s=world.price_per_s,
            packet_bytes=world.carriage(asked).packet_bytes,
            codecs=world.carriage(asked).codecs,
            cells=64,
            turn=view.turn,
            age_s=dict(view.age_s),
        )
        again = decided(asked, by_hand, world.quality, Calibration())
        assert (again.plan, again.predicted_s, again.price) == (
            choice.plan,
            choice.predicted_s,
            choice.price,
        )


def test_a_view_is_as_old_as_the_last_report_and_has_what_was_decided_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched, world = Watched(monkeypatch), a_world("tower", report_s=10.0)
    asked = [request(request_id=str(n), policy="edge-only", deadline_s=60.0) for n in range(3)]
    Simulation(world).play(
        iter([(20.0 + n, each, world.groups[0]) for n, each in enumerate(asked)])
    )
    assert [len(view.stages["tower"].held) for _, view, _ in watched.seen] in ([0, 1, 2], [0, 1, 1])
    assert all(0.0 < view.age_s["tower"] <= 10.0 for _, view, _ in watched.seen)


def test_a_stage_that_is_lost_is_out_of_the_view_until_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch)
    world = a_world("tower", "phone", faults=[Fault("lost", 10.0, 10.0, stage="tower")])
    times = [5.0, 9.9, 15.0, 25.0]
    each = [request(request_id=str(n), policy="earliest", quality_floor=0.0) for n in range(4)]
    asked: list[Arrival] = [
        (at_s, one, world.groups[0]) for at_s, one in zip(times, each, strict=True)
    ]
    tally = Simulation(world).play(iter(asked))
    assert ["tower" in view.stages for _, view, _ in watched.seen] == [True, True, False, True]
    assert tally.fates() == {SERVED: 3, "stage_lost": 1}


def test_a_slow_replica_is_known_to_be_slow() -> None:
    world = a_world("tower", faults=[Fault("slow", 2.0, 50.0, stage="tower", times=2.0)])
    asked = request(policy="edge-only", deadline_s=60.0)
    tally = Simulation(world).play(iter([(9.0, asked, world.groups[0])]))
    assert tally.latency_s[0] == pytest.approx(2 * (0.043 + 20 * 0.085 + 0.117))
    assert tally.predicted_s[0] == pytest.approx(tally.latency_s[0])


def counted(count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float, int]:
    """Rounds played and images copied by request, and the most events in line."""
    rounds = copied = 0
    copy, play = Run.copy, Run.round

    def counting_copy(run: Run) -> Run:
        nonlocal copied
        copied += len(run.images)
        return copy(run)

    def counting_round(run: Run) -> None:
        nonlocal rounds
        rounds += 1
        play(run)

    world, most = a_world(), 0
    simulation = Simulation(world)

    def evenly() -> Iterator[Arrival]:
        nonlocal most
        for number in range(count):
            most = max(most, len(simulation._heap))
            asked = request(request_id=str(number), deadline_s=9.0, **FIXED)
            yield 1.7 * number, asked, world.groups[0]

    with monkeypatch.context() as patched:
        patched.setattr(Run, "copy", counting_copy)
        patched.setattr(Run, "round", counting_round)
        simulation.play(evenly())
    return rounds / count, copied / count, most


def test_an_event_costs_the_same_after_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """By operations, not seconds: rounds of the rules, images copied, events that wait."""
    few, many = counted(30, monkeypatch), counted(150, monkeypatch)
    assert many[0] == pytest.approx(few[0], rel=0.1)
    assert many[1] == pytest.approx(few[1], rel=0.1)
    assert many[2] == few[2]
