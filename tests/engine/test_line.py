"""Nobody is left waiting: a stage that is closed, a loop that fails, one that has just run out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from diffusion_edge.batching import Sample
from diffusion_edge.engine.pace import OwnPace
from diffusion_edge.engine.run import Trajectory, begin
from diffusion_edge.engine.stepper import Entry, Stepper
from diffusion_edge.engine.together import Together
from diffusion_edge.engine.turn import Seat, Turns
from diffusion_edge.engine.worker import Worker
from diffusion_edge.errors import StageLost
from tests.engine.test_worker import Gate, a_packet, a_worker, all_of, gate, half_way, handed
from tests.fakes import FakeClock, FakeFamily

__all__ = ["gate"]

SOON = 10.0
"""Seconds after which somebody counts as left waiting."""


async def ends(tasks: Sequence[asyncio.Task[Any]]) -> list[Any]:
    """How tasks end; TimeoutError if one is left waiting."""
    async with asyncio.timeout(SOON):
        return await asyncio.gather(*tasks, return_exceptions=True)


def held(worker: Worker, work: str, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread stands at the gate before it does such work."""
    real = getattr(worker._family, work)

    def waiting(*args: Any) -> Any:
        gate()
        return real(*args)

    monkeypatch.setattr(worker._family, work, waiting)


@pytest.mark.parametrize("work", ["encode_text", "predict", "decode"])
@pytest.mark.parametrize("mode", ["in-flight", "off"])
async def test_closing_a_stage_ends_all_that_it_holds_and_what_comes_later(
    work: str, mode: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_worker(mode=mode, capacity=4) as worker:
        held(worker, work, gate, monkeypatch)
        tasks = [asyncio.create_task(all_of(worker, a_packet(seed=seed))) for seed in range(4)]
        await gate.reached()
        worker.close()
        gate.open()
        for ended in await ends(tasks):
            assert isinstance(ended, StageLost)
            assert (ended.stage, "'tower' was closed" in ended.message) == ("tower", True)
        (late,) = await ends([asyncio.create_task(all_of(worker, a_packet()))])
        assert isinstance(late, StageLost)
        assert worker.status().queued == 0


async def test_closing_a_stage_ends_what_waits_for_a_place(gate: Gate) -> None:
    async with a_worker(capacity=1, on_predict=gate) as worker:
        tasks = [asyncio.create_task(handed(worker, half_way(seed=seed))) for seed in range(4)]
        await gate.reached()
        worker.close()
        gate.open()
        assert all(isinstance(ended, StageLost) for ended in await ends(tasks))
        assert worker.status().queued == 0


async def test_threads_that_end_by_themselves_leave_nobody_waiting(gate: Gate) -> None:
    async with a_worker(on_predict=gate) as worker:
        tasks = [asyncio.create_task(all_of(worker, a_packet(seed=seed))) for seed in range(3)]
        await gate.reached()
        worker._parts.lanes.close()
        gate.open()
        assert all(isinstance(ended, Exception) for ended in await ends(tasks))
        (late,) = await ends([asyncio.create_task(all_of(worker, a_packet()))])
        assert isinstance(late, Exception)


async def test_a_rule_that_fails_is_told_to_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides who steps, and for whom, is work too."""
    async with a_worker() as worker:

        def broken(company: Sequence[Sample]) -> int:
            raise ZeroDivisionError("a rule of batching")

        with monkeypatch.context() as within:
            within.setattr(worker._parts.stepper, "_rows", broken)
            tasks = [asyncio.create_task(all_of(worker, a_packet(seed=n))) for n in range(3)]
            assert all(isinstance(ended, ZeroDivisionError) for ended in await ends(tasks))
        assert len(await all_of(worker, a_packet())) == 3


# ---------------------------------------------------------------------------- one after another


def a_stepper() -> Stepper:
    async def step(trajectories: Sequence[Trajectory], rows: int) -> list[Trajectory]:
        return list(trajectories)

    clock = FakeClock()
    return Stepper(
        step,
        clock,
        Seat(Turns(), "steps"),
        mode="in-flight",
        rows=lambda company: 8,
        pace=OwnPace(clock),
        seconds=lambda cells, rows: 0.0,
        on_step=lambda *seen: None,
    )


def an_entry() -> Entry:
    return Entry(Sample("alike", 1, 0.0, cells=4), begin(FakeFamily("edge"), a_packet()), left=1)


def stepping() -> Callable[[], Any]:
    stepper = a_stepper()
    return lambda: stepper.take(an_entry())


def making() -> Callable[[], Any]:
    async def call(items: Sequence[int]) -> list[int]:
        return list(items)

    clock = FakeClock()
    made: Together[int, int] = Together(
        call,
        clock,
        Seat(Turns(), "texts"),
        most=len,
        pace=OwnPace(clock),
        seconds=lambda items: 0.0,
    )
    return lambda: made.make(1)


@pytest.mark.parametrize("queue", [stepping, making])
async def test_who_comes_when_the_last_one_has_just_left_is_served(
    queue: Callable[[], Callable[[], Any]],
) -> None:
    """Whatever the loop had come to when the one left, and when the other came."""
    for before in range(6):
        for between in range(6):
            join = queue()
            first = asyncio.create_task(join())
            for _ in range(before):
                await asyncio.sleep(0)
            first.cancel()
            for _ in range(between):
                await asyncio.sleep(0)
            second = asyncio.create_task(join())
            _, came = await ends([first, second])
            assert not isinstance(came, BaseException), (before, between)
