"""Emulated links on a virtual clock: what bytes take, who waits for whom, changes meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_edge.engine.link import EmulatedLink, steady
from diffusion_edge.traces import Trace, transfer_s
from tests.fakes import VirtualClock

DEAD_IN_BETWEEN = Trace(np.array([0.0, 1.0, 3.0]), np.array([100.0, 0.0, 50.0]), 4.0)


def a_link(
    rates: Trace | None = None, delay_s: float = 0.0, overshoot_s: float = 0.0
) -> tuple[EmulatedLink, VirtualClock]:
    clock = VirtualClock(overshoot_s)
    return EmulatedLink(rates or steady(100.0), delay_s, clock), clock


async def sent(
    link: EmulatedLink, clock: VirtualClock, packets: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """When each packet (seconds from now, bytes) is there, and how long it waited for others."""
    began = clock.now()

    async def one(at_s: float, nbytes: float) -> tuple[float, float]:
        await clock.sleep(at_s)
        waited_s = await link.carry(nbytes)
        return clock.now() - began, waited_s

    async def together() -> list[tuple[float, float]]:
        return await asyncio.gather(*(one(at_s, nbytes) for at_s, nbytes in packets))

    return await clock.run(together())


async def test_a_packet_takes_its_bytes_and_one_delay() -> None:
    link, clock = a_link(delay_s=0.5)
    assert await sent(link, clock, [(0.0, 300.0)]) == [pytest.approx((3.5, 0.0))]


async def test_packets_pass_one_after_another_and_their_delays_overlap() -> None:
    link, clock = a_link(delay_s=10.0)
    assert await sent(link, clock, [(0.0, 300.0), (1.0, 100.0), (9.0, 100.0)]) == [
        pytest.approx((13.0, 0.0)),
        pytest.approx((14.0, 2.0)),
        pytest.approx((20.0, 0.0)),
    ]


async def test_a_rate_holds_from_its_row_to_the_next_and_the_trace_begins_again() -> None:
    link, clock = a_link(DEAD_IN_BETWEEN)
    assert await sent(link, clock, [(0.0, 130.0)]) == [pytest.approx((3.6, 0.0))]
    link, clock = a_link(DEAD_IN_BETWEEN)
    assert await sent(link, clock, [(2.0, 50.0 + 100.0 + 25.0)]) == [pytest.approx((7.5, 0.0))]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 20), st.floats(1, 500)), min_size=1, max_size=6, unique=True)
)
async def test_packets_take_what_the_pure_function_says(packets: list[tuple[float, float]]) -> None:
    packets = sorted(packets, key=lambda packet: packet[0])
    link, clock = a_link(DEAD_IN_BETWEEN, delay_s=0.25)
    free_s = 0.0
    for (at_s, nbytes), (there_s, waited_s) in zip(
        packets, await sent(link, clock, packets), strict=True
    ):
        begins_s = max(at_s, free_s)
        free_s = begins_s + transfer_s(DEAD_IN_BETWEEN, begins_s, nbytes)
        assert there_s == pytest.approx(free_s + 0.25, abs=1e-6)
        assert waited_s == pytest.approx(begins_s - at_s, abs=1e-6)


async def test_what_sleeps_overshoot_is_made_up_by_the_next_packet() -> None:
    link, clock = a_link(overshoot_s=0.1)
    there = await sent(link, clock, [(0.0, 100.0)] * 5)
    assert there[-1][0] == pytest.approx(5.1)


async def test_a_change_acts_at_once_also_on_what_is_passing() -> None:
    link, clock = a_link()

    async def changes() -> None:
        await clock.sleep(4.0)
        link.throttle(0.1)  # 600 of 1000 bytes are left, at 10 a second
        await clock.sleep(30.0)
        link.throttle(1.0)  # 300 are left, at 100 a second

    async def both() -> list[tuple[float, float]]:
        changing = asyncio.create_task(changes())
        began = clock.now()
        waited_s = [await link.carry(1000.0)]
        ended = [clock.now() - began]
        waited_s.append(await link.carry(200.0))
        ended.append(clock.now() - began)
        await changing
        return list(zip(ended, waited_s, strict=True))

    assert await clock.run(both()) == [pytest.approx((37.0, 0.0)), pytest.approx((39.0, 0.0))]


async def test_a_factor_holds_until_told_otherwise() -> None:
    link, clock = a_link(delay_s=0.5)
    link.throttle(0.1)
    for _ in range(2):
        assert await sent(link, clock, [(0.0, 100.0)]) == [pytest.approx((10.5, 0.0))]
    link.throttle(2.0)
    assert await sent(link, clock, [(0.0, 100.0)]) == [pytest.approx((1.0, 0.0))]


async def test_a_trace_begins_again_when_told_also_for_what_is_passing() -> None:
    link, clock = a_link(DEAD_IN_BETWEEN)

    async def told() -> float:
        began = clock.now()
        carrying = asyncio.create_task(link.carry(150.0))
        await clock.sleep(2.0)  # 100 bytes have passed, and nothing would before 3 s
        link.throttle(1.0, restart=True)
        await carrying
        return clock.now() - began

    assert await clock.run(told()) == pytest.approx(2.5)
    await clock.run(clock.sleep(0.5))
    link.throttle(1.0, restart=True)
    assert await sent(link, clock, [(0.0, 100.0)]) == [pytest.approx((1.0, 0.0))]


@pytest.mark.parametrize("leaves_at_s", [1.0, 6.0])
async def test_who_leaves_keeps_nobody_waiting(leaves_at_s: float) -> None:
    """While it passes, or while it waits for its turn."""
    link, clock = a_link()

    async def left() -> list[float]:
        began = clock.now()
        first = asyncio.create_task(link.carry(500.0))
        await asyncio.sleep(0)
        leaving = asyncio.create_task(link.carry(1000.0))
        staying = asyncio.create_task(link.carry(100.0))
        await clock.sleep(leaves_at_s)
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        await asyncio.gather(first, staying)
        return [clock.now() - began, staying.result()]

    there_s, waited_s = await clock.run(left())
    assert (there_s, waited_s) == pytest.approx((max(leaves_at_s, 5.0) + 1.0, there_s - 1.0))
