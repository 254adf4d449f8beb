"""Who has a place on a stage, and who waits for one."""

from __future__ import annotations

import asyncio

import pytest

from diffusion_edge.engine.run import run_last_span
from diffusion_edge.engine.worker import Worker
from diffusion_edge.errors import (
    DeadlineExceeded,
    QueueFull,
)
from diffusion_edge.request import Accepted, Times
from diffusion_edge.sites.local import LocalTransport
from tests.engine.test_worker import (
    NOWHERE,
    Gate,
    a_packet,
    a_worker,
    all_of,
    done,
    gate,
    half_way,
    handed,
)
from tests.fakes import FakeFamily

__all__ = ["gate"]


async def test_a_hand_off_waits_where_a_new_request_is_refused(gate: Gate) -> None:
    """16 requests by way of a stage that holds two: none of the first stage's steps are lost."""
    order: list[int] = []

    async def one(tower: Worker, sites: LocalTransport, seed: int) -> None:
        packet = a_packet("tower:2,hall:2", seed=seed)
        result = done(await all_of(tower, packet, sites))
        assert (
            result.picture == run_last_span(FakeFamily("edge"), a_packet("tower:4", seed=seed))[1]
        )
        order.append(seed)

    async with (
        a_worker("tower", capacity=16) as tower,
        a_worker("hall", capacity=2, on_predict=gate) as hall,
    ):
        sites = LocalTransport({"hall": hall})
        tasks = [asyncio.create_task(one(tower, sites, seed)) for seed in range(16)]
        async with asyncio.timeout(30):
            while hall.status().queued < 16:
                await asyncio.sleep(0)
        assert hall.status().queue_s > 0
        assert [job.packet.latent is None for job in hall._queue] == [False] * 2 + [True] * 14
        with pytest.raises(QueueFull, match="16 images"):
            await all_of(hall, a_packet("hall:1"))
        gate.open()
        await asyncio.gather(*tasks)
        assert hall.status().queued == 0
    assert order == list(range(16))


async def test_what_waits_says_accepted_at_once_and_may_leave(gate: Gate) -> None:
    async with a_worker(capacity=1, on_predict=gate) as worker:
        first = asyncio.create_task(handed(worker, half_way(seed=0)))
        await gate.reached()
        leaving = worker.run(half_way(seed=1), NOWHERE)
        assert await anext(leaving) == Accepted("tower")
        third = asyncio.create_task(handed(worker, half_way(seed=2)))
        await asyncio.sleep(0)
        assert worker.status().queued == 3
        await leaving.aclose()
        assert worker.status().queued == 2
        gate.open()
        results = await asyncio.gather(first, third)
    assert [result.picture for result in results] == [
        run_last_span(FakeFamily("edge"), a_packet("tower:4", seed=seed))[1] for seed in (0, 2)
    ]
    assert results[1].spans[0].queue_s > 0


async def test_what_waits_is_given_up_in_time(gate: Gate) -> None:
    async with a_worker(capacity=1, on_predict=gate) as worker:
        first = asyncio.create_task(handed(worker, half_way()))
        await gate.reached()
        with pytest.raises(DeadlineExceeded, match="at step 2 of 4"):
            await handed(worker, half_way(left=Times(give_up=0.01)))
        assert worker.status().queued == 1
        gate.open()
        await first


@pytest.mark.parametrize(("name", "value"), [("HELD", 3), ("HELD_BYTES", 3 * len(half_way()) + 1)])
async def test_how_many_may_wait_is_bounded(
    name: str, value: int, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"diffusion_edge.engine.job.{name}", value)
    async with a_worker(capacity=1, on_predict=gate) as worker:
        tasks = [asyncio.create_task(handed(worker, half_way())) for _ in range(4)]
        await gate.reached()
        assert worker.status().queued == 4
        with pytest.raises(QueueFull, match="4 images"):
            await handed(worker, half_way())
        gate.open()
        await asyncio.gather(*tasks)
