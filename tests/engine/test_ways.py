"""Hand-offs as the sender makes them: time left, codecs, errors, links acted out."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from diffusion_edge.errors import (
    InvalidRequest,
    QueueFull,
    StageLost,
)
from diffusion_edge.packet import read, write
from diffusion_edge.request import NEVER, Accepted, Event, Times
from diffusion_edge.sites.local import LocalTransport
from diffusion_edge.traces import Trace
from diffusion_edge.view import Link
from tests.engine.test_worker import NOWHERE, a_packet, a_worker, all_of, done
from tests.fakes import FakeClock, FakeFamily, FakeTransport, VirtualClock


async def test_the_next_stage_gets_the_time_that_is_left() -> None:
    clock, forward = FakeClock(), FakeTransport(QueueFull("far enough"))
    async with a_worker(clock=clock, on_predict=lambda: clock.advance(1.5)) as worker:
        for left, then in [
            (Times(5.0, 20.0), Times(2.0, 17.0)),
            (Times(0.0, None), Times(-3.0, None)),
            (NEVER, NEVER),
        ]:
            with pytest.raises(QueueFull):
                await all_of(worker, a_packet("tower:2,hall:2", left=left), forward)
            assert read(forward.sent[-1][1], FakeFamily.latent_space).left == then


async def test_a_stage_that_does_not_accept_is_lost() -> None:
    silent = FakeTransport(forever=True)
    async with a_worker(hop_timeout_s=0.05) as worker:
        with pytest.raises(StageLost, match=r"'hall' did not accept .* within 0\.05 s") as caught:
            await all_of(worker, a_packet("tower:1,hall:1"), silent)
    assert caught.value.stage == "hall"
    assert silent.closed.is_set()


@pytest.mark.parametrize("events", [(), (Accepted("hall"),)])
async def test_a_stage_that_ends_without_a_result_is_lost(events: tuple[Event, ...]) -> None:
    async with a_worker() as worker:
        with pytest.raises(StageLost):
            await all_of(worker, a_packet("tower:1,hall:1"), FakeTransport(*events))


async def test_errors_of_the_next_stage_pass_through() -> None:
    full = FakeTransport(QueueFull("the stage 'hall' is full", retry_after_s=7.0))
    async with a_worker() as worker:
        with pytest.raises(QueueFull) as caught:
            await all_of(worker, a_packet("tower:1,hall:1"), full)
    assert caught.value.retry_after_s == 7.0


async def test_closing_reaches_the_next_stage() -> None:
    busy = FakeTransport(Accepted("hall"), forever=True)
    async with a_worker() as worker:
        events = worker.run(write(a_packet("tower:1,hall:1")), busy)
        while await anext(events) != Accepted("hall"):
            pass
        reading = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.wait_for(busy.closed.wait(), 5)


async def test_a_packet_for_the_same_stage_stays_in_the_replica() -> None:
    async with a_worker() as worker:
        whole = done(await all_of(worker, a_packet("tower:4")))
        cut = done(await all_of(worker, a_packet("tower:1,tower:3"), NOWHERE))
        assert cut.picture == whole.picture
        assert [(hop.source, hop.target) for hop in cut.hops] == [("tower", "tower")]
        assert [(span.start, span.stop) for span in cut.spans] == [(0, 1), (1, 4)]
        assert worker.status().queued == 0


async def test_a_link_is_acted_out_by_the_sender() -> None:
    clock = FakeClock()
    links = {"hall": Link(bytes_per_s=1000.0, delay_s=0.5)}
    async with a_worker("tower", clock=clock, links=links) as tower, a_worker("hall") as hall:
        events = await all_of(tower, a_packet("tower:1,hall:1"), LocalTransport({"hall": hall}))
    (hop,) = done(events).hops
    assert hop.emulated_s == pytest.approx(0.5 + hop.nbytes / 1000)
    assert hop.seconds == pytest.approx(hop.emulated_s)


async def test_packets_that_leave_together_pass_a_link_one_after_another() -> None:
    clock = VirtualClock()
    links = {"hall": Link(bytes_per_s=1000.0, delay_s=0.5)}
    async with a_worker("tower", clock=clock, links=links) as tower, a_worker("hall") as hall:
        sites = LocalTransport({"hall": hall})
        packets = [a_packet("tower:1,hall:1", seed=seed) for seed in range(3)]

        async def together() -> list[list[Event]]:
            return await asyncio.gather(*(all_of(tower, packet, sites) for packet in packets))

        hops = [done(events).hops[0] for events in await clock.run(together())]
    passing_s = hops[0].nbytes / 1000
    assert [hop.queue_s for hop in hops] == pytest.approx([n * passing_s for n in range(3)])
    assert [hop.emulated_s for hop in hops] == pytest.approx(
        [(n + 1) * passing_s + 0.5 for n in range(3)]
    )


async def test_a_link_follows_its_trace() -> None:
    clock = FakeClock()
    links, dead = {"hall": Link(1000.0, 0.5)}, Trace(np.array([0.0, 9.0]), np.array([0, 1e3]), 20)
    async with (
        a_worker("tower", clock=clock, links=links, traces={"hall": dead}) as tower,
        a_worker("hall") as hall,
    ):
        events = await all_of(tower, a_packet("tower:1,hall:1"), LocalTransport({"hall": hall}))
    (hop,) = done(events).hops
    assert hop.emulated_s == pytest.approx(9.0 + hop.nbytes / 1000 + 0.5)


async def test_only_emulated_links_are_throttled() -> None:
    async with a_worker("tower", links={"hall": Link(1000.0, 0.5)}) as tower:
        tower.throttle("hall", 0.5)
        with pytest.raises(InvalidRequest, match="'tower' has no emulated link to 'phone'"):
            tower.throttle("phone", 0.5)


async def test_a_hop_is_carried_by_the_plans_codec() -> None:
    async with a_worker("tower") as tower, a_worker("hall") as hall:
        sites = LocalTransport({"tower": tower, "hall": hall})
        packet = a_packet("tower:1,hall:1,tower:1", width=64, height=64)
        carried = replace(packet, plan=replace(packet.plan, codecs=("int8", "bf16")))
        hops = done(await all_of(tower, carried, sites)).hops
        exact = done(await all_of(tower, packet, sites)).hops
    assert [hop.codec for hop in hops] == ["int8", "bf16"]
    assert [hop.codec for hop in exact] == ["exact", "exact"]
    assert hops[0].nbytes < hops[1].nbytes < exact[1].nbytes
