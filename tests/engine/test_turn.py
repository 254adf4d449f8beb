"""What a stage says that it does: whose turn it is, who is in it, for how long, and who waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from diffusion_edge.emulation import Emulate
from diffusion_edge.view import Turn
from tests.engine.test_worker import Gate, a_packet, a_worker, all_of, gate
from tests.fakes import FakeClock, VirtualClock

__all__ = ["gate"]


async def test_an_idle_stage_does_nothing() -> None:
    async with a_worker() as worker:
        assert worker.status().turn == Turn()
        await all_of(worker, a_packet())
        assert worker.status().turn == Turn()


async def test_a_pass_is_told_with_its_images_and_the_seconds_left_of_it(gate: Gate) -> None:
    clock = FakeClock()
    async with a_worker(on_predict=gate, clock=clock) as worker:
        step_s = 2.0
        for _ in range(9):
            worker._parts.known = worker._parts.seconds.after_step(16, 1, step_s)
        first = asyncio.create_task(all_of(worker, a_packet()))
        await gate.reached()
        second = asyncio.create_task(all_of(worker, a_packet(seed=4)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert worker.status().turn == Turn("steps", (0,), pytest.approx(2.0), ("texts",))
        clock.advance(1.5)
        assert worker.status().turn.left_s == pytest.approx(0.5)
        clock.advance(1.5)
        assert worker.status().turn.left_s == 0  # late, by how much more nobody knows
        first.cancel()
        await asyncio.wait([first], timeout=0.01)
        assert worker.status().turn.images == ()  # the one that is left waits for its text
        gate.open()
        await second


@contextmanager
def told(worker: Any, clock: VirtualClock, turns: list[tuple[Any, ...]]) -> Iterator[None]:
    """Notes what the stage says in the middle of every sleep."""
    sleep = clock.sleep

    async def noting(seconds: float) -> None:
        await sleep(seconds / 2)
        turn = worker.status().turn
        turns.append((turn.work, turn.images, round(turn.left_s, 6)))
        await sleep(seconds / 2)

    clock.sleep = noting  # type: ignore[method-assign]  # one fake more
    yield


async def test_a_stated_stage_tells_what_it_sleeps_for() -> None:
    clock, stated = VirtualClock(), Emulate(step_s=0.4, encode_s=0.2, decode_s=0.6)
    async with a_worker(clock=clock, emulate=stated) as worker:
        turns: list[tuple[Any, ...]] = []
        with told(worker, clock, turns):
            await clock.run(all_of(worker, a_packet("tower:2")))
    assert turns == [
        ("texts", (0,), 0.1),
        ("steps", (0,), 0.2),
        ("steps", (0,), 0.2),
        ("pictures", (0,), 0.3),
    ]
