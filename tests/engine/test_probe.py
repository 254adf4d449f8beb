"""Probes on a virtual clock: they take what a packet of as many bytes would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from diffusion_edge.engine.lag import KEPT_S, Lag
from diffusion_edge.engine.link import EmulatedLink, steady
from diffusion_edge.engine.probe import LONGEST_S, probed
from diffusion_edge.errors import StageLost
from diffusion_edge.traces import Trace, transfer_s
from tests.engine.test_link import DEAD_IN_BETWEEN
from tests.engine.test_worker import a_worker
from tests.fakes import VirtualClock


class Far:
    """Stages that take `takes_s` to answer, and were late; keeps what they got."""

    def __init__(
        self, clock: VirtualClock, takes_s: float = 0.0, answers: int = 1, late_s: float = 0.0
    ) -> None:
        self.clock, self.takes_s, self.answers, self.late_s = clock, takes_s, answers, late_s
        self.got: list[tuple[str, bytes]] = []

    async def greet(self, stage: str, data: bytes) -> AsyncGenerator[float, None]:
        self.got.append((stage, data))
        await self.clock.sleep(self.takes_s)
        for _ in range(self.answers):
            yield self.late_s


def a_link(clock: VirtualClock, rates: Trace, delay_s: float = 0.5) -> EmulatedLink:
    return EmulatedLink(rates, delay_s, clock)


@pytest.mark.parametrize("start_s", [0.0, 0.75, 2.0])
async def test_a_probe_takes_what_a_packet_would_over_a_trace_and_the_real_way(
    start_s: float,
) -> None:
    clock = VirtualClock()
    link, far = a_link(clock, DEAD_IN_BETWEEN), Far(clock, takes_s=0.125)

    async def later() -> float | None:
        await clock.sleep(start_s)
        return await probed("hall", 60, link, far, clock)

    right_s = transfer_s(DEAD_IN_BETWEEN, start_s, 60) + 0.5 + 0.125
    assert await clock.run(later()) == pytest.approx(right_s)
    ((stage, data),) = far.got
    assert (stage, len(data)) == ("hall", 60)


async def test_without_an_emulated_link_it_takes_the_real_way() -> None:
    clock = VirtualClock()
    assert await clock.run(probed("hall", 9, None, Far(clock, 0.25), clock)) == 0.25


async def test_a_link_in_use_is_left_to_its_packets() -> None:
    clock = VirtualClock()
    link, far = a_link(clock, steady(100.0)), Far(clock)

    async def both() -> float | None:
        packet = asyncio.create_task(link.carry(300))
        await clock.sleep(1.0)
        seconds = await probed("hall", 50, link, far, clock)
        await packet
        return seconds

    assert await clock.run(both()) is None
    assert far.got == []
    assert await clock.run(probed("hall", 50, link, far, clock)) == pytest.approx(1.0)


async def test_a_probe_that_takes_long_is_cut_off_and_off_the_link() -> None:
    clock = VirtualClock()
    link, far = a_link(clock, steady(1.0)), Far(clock)
    assert await clock.run(probed("hall", 1000, link, far, clock)) == LONGEST_S
    assert far.got == []
    began = clock.now()
    assert await clock.run(link.carry(2)) == pytest.approx(0.0)
    assert clock.now() - began == pytest.approx(2.5)
    assert await clock.run(probed("hall", 9, None, Far(clock, 99.0), clock)) == LONGEST_S


@pytest.mark.parametrize(
    ("takes_s", "here_s", "there_s", "told"),
    [
        (0.5, 0.0, 0.12, True),
        (0.5, 0.0, 0.13, False),
        (0.5, 0.12, 0.0, True),
        (0.5, 0.3, 0.0, False),
        (0.5, 0.1, 0.1, False),
        (0.01, 0.0, 0.019, True),
        (0.01, 0.0, 0.021, False),
    ],
)
async def test_what_an_end_was_late_is_not_taken_for_the_link(
    takes_s: float, here_s: float, there_s: float, told: bool
) -> None:
    """Every sleep of the sender's ends so much later."""
    clock = VirtualClock(overshoot_s=here_s)
    far = Far(VirtualClock(), takes_s=0.0, late_s=there_s)
    link = a_link(clock, steady(1e6), delay_s=takes_s)
    far.clock = clock
    seconds = await clock.run(probed("hall", 1, link, far, clock))
    assert (seconds is not None) == told


async def test_a_loop_that_is_late_now_or_was_lately_says_so() -> None:
    clock = VirtualClock()
    lag = Lag(clock, 0.25)

    async def story() -> list[float]:
        found = [lag.worst_s()]
        async with lag.watching():
            await clock.sleep(0.5)
            found.append(lag.worst_s())
            clock.seconds += 2.0  # nobody woke meanwhile
            found.append(lag.worst_s())
            await clock.sleep(0.25)
            found.append(lag.worst_s())
            await clock.sleep(KEPT_S + 0.5)
            found.append(lag.worst_s())
        return found

    found = await clock.run(story())
    assert found[:2] == [0.0, 0.0]
    assert found[2] >= 1.75
    assert found[3:] == [pytest.approx(found[2], abs=0.25), 0.0]


async def test_no_answer_is_no_measure() -> None:
    clock = VirtualClock()
    with pytest.raises(StageLost, match="'hall' gave no answer"):
        await clock.run(probed("hall", 9, None, Far(clock, answers=0), clock))


async def test_a_closed_stage_sends_none() -> None:
    clock = VirtualClock()
    far = Far(clock)
    async with a_worker("tower", clock=clock) as worker:
        assert await clock.run(worker.probe("hall", 9, far)) == 0.0
        worker.close()
        with pytest.raises(StageLost, match="'tower' was closed"):
            await worker.probe("hall", 9, far)
    assert len(far.got) == 1
