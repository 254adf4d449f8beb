"""A simulated stage against a real worker on a virtual clock: everybody is done at the same moment,
and what is told meanwhile is what a worker tells."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf
from typing import Any

import pytest

from diffusion_edge.packet import Packet
from diffusion_edge.routing.forecast import ahead
from diffusion_edge.sim.stage import Coming, Guest, SimStage
from diffusion_edge.view import StageStatus
from tests.engine.test_foretold import Script, played, some_arrivals, ways

from .worlds import stage


def coming(packet: Packet, status: StageStatus, now: float) -> Coming:
    guided = packet.guidance > 1
    return Coming(
        request=packet.request_id,
        image=0,
        steps=packet.plan.spans[0].steps,
        rows=status.rows(guided),
        cells=packet.width * packet.height // 16,
        due_s=packet.left.shifted(now).due,
        decodes=len(packet.plan.spans) == 1,
        doubled=status.doubles(guided),
    )


def some(number: int, **changes: Any) -> Coming:
    plain = Coming(str(number), 0, 5, 1, 64, None, decodes=True, doubled=False)
    return replace(plain, **changes)


class Hall:
    """A stage that is played by itself; when everybody left it."""

    def __init__(self, idle: StageStatus) -> None:
        self.stage = SimStage(idle)
        self.left_s: dict[str, float] = {}

    def until(self, time_s: float) -> None:
        while self.stage.next_s <= min(time_s, 1e9):
            now = self.stage.next_s
            self.left_s |= {guest.coming.request: now for guest in self.stage.leave()}

    def take(self, one: Coming, now: float) -> Guest:
        self.until(now)
        return self.stage.take(one, now)


@ways
async def test_everybody_is_done_when_a_worker_has_done_it(options: dict[str, Any]) -> None:
    arrivals = some_arrivals(1, 9)
    script: Script = await played(arrivals, **options)
    assert script.worker is not None
    hall = Hall(script.worker.status())
    for at_s, packet in arrivals:
        hall.take(coming(packet, hall.stage.idle, at_s), at_s)
    hall.until(inf)
    assert hall.left_s == pytest.approx(script.done_s, abs=1e-7)
    assert len(hall.left_s) == len(arrivals)


@pytest.mark.parametrize("name", ["tower", "hall"])
def test_what_it_reports_at_any_moment_is_how_it_goes_on(name: str) -> None:
    """The rules run ahead from a report, whatever runs then, come to the moments of the stage."""
    hall, rng, now = Hall(stage(name)), random.Random(name), 0.0
    told = []
    for number in range(12):
        now += rng.expovariate(4.0)
        hall.take(some(number, steps=rng.randint(1, 20), due_s=now + rng.uniform(1, 9)), now)
    while len(hall.stage):
        status = hall.stage.report(now).at(now)
        foretold = zip(status.held, ahead(status), strict=True)
        told += [(held.request, now + end_s) for held, end_s in foretold]
        now += 0.0571
        hall.until(now)
    assert len(told) > 100
    for request, end_s in told:
        assert end_s == pytest.approx(hall.left_s[request], abs=1e-7)


def test_who_is_dropped_goes_when_the_pass_is_over_and_the_others_go_on() -> None:
    """One at a time takes 0.085 s a step: the first one is dropped in the middle of its third."""
    hall = Hall(stage("tower"))
    first = hall.take(some(0, due_s=1.0), 0.0)
    hall.take(some(1, due_s=2.0), 0.0)
    texts_s = 2 * 0.043
    hall.until(texts_s + 2.5 * 0.085)
    hall.stage.drop(first, texts_s + 2.5 * 0.085)
    assert hall.stage.next_s == pytest.approx(texts_s + 3 * 0.085)
    hall.until(inf)
    assert set(hall.left_s) == {"1"}
    # While there was a text to encode, passes and texts took turns: the first pass came in between.
    assert hall.left_s["1"] == pytest.approx(texts_s + (3 + 5) * 0.085 + 0.117)


def test_who_waits_is_dropped_at_once_and_costs_nothing() -> None:
    hall = Hall(stage("tower"))
    hall.take(some(0, due_s=1.0), 0.0)
    second = hall.take(some(1, due_s=2.0), 0.3)
    hall.stage.drop(second, 0.3)
    hall.until(inf)
    assert hall.left_s == {"0": pytest.approx(0.043 + 5 * 0.085 + 0.117, abs=0.086)}


def test_a_stage_that_becomes_slow_finishes_its_step_and_then_takes_longer() -> None:
    hall = Hall(stage("tower"))
    hall.take(some(0), 0.0)
    hall.until(0.043 + 1.5 * 0.085)
    hall.stage.slowed(replace(hall.stage.idle, step_s={64: {1: 0.17}}), 0.043 + 1.5 * 0.085)
    hall.until(inf)
    assert hall.left_s["0"] == pytest.approx(0.043 + 2 * 0.085 + 3 * 0.17 + 0.117)


def test_who_is_done_but_for_rounding_is_not_there_any_more() -> None:
    """So nobody asks what is left of it, though it has still to be told that it left."""
    hall = SimStage(stage("hall"))
    guest = hall.take(some(0, decodes=False), 0.0)
    assert list(hall.here(0.1)) == [guest]
    assert hall.left(guest, 0.1) == 5
    assert not hall.here(hall.next_s - 1e-12)
    assert hall.leave() == [guest]


def test_a_stage_that_is_lost_holds_nothing() -> None:
    hall = Hall(stage("tower"))
    guests = [hall.take(some(number), 0.0) for number in range(3)]
    assert hall.stage.lose(0.1) == guests
    assert (len(hall.stage), hall.stage.next_s) == (0, inf)
    assert hall.stage.report(5.0).at(5.0) is hall.stage.idle
    hall.take(some(3), 5.0)
    hall.until(inf)
    assert hall.left_s == {"3": pytest.approx(5.0 + 0.043 + 5 * 0.085 + 0.117)}


def test_nothing_grows_with_what_was_done_before() -> None:
    hall = Hall(stage("hall"))
    sizes = []
    for number in range(400):
        hall.take(some(number, steps=3), 0.9 * number)
        sizes.append(len(hall.stage.report(0.9 * number).run.images))
    assert max(sizes[20:]) == max(sizes[:20]) < 10
