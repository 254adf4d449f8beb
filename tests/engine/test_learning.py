"""What a stage learns of its seconds while it serves, on a virtual clock: how many share a pass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_edge.engine.worker import Worker
from diffusion_edge.families.base import Conditioning
from diffusion_edge.request import Picture
from tests.engine.test_worker import CELLS, a_packet, all_of
from tests.fakes import FakeClock, FakeFamily


@dataclass
class Machine:
    """How long a forward pass takes: a little, and more with its cells. `slow` is asked too."""

    clock: FakeClock = field(default_factory=FakeClock)
    slow: Callable[[int, int], float] = lambda rows, cells: 0.0
    passes: list[int] = field(default_factory=list)

    def took(self, rows: int, cells: int) -> None:
        self.passes.append(rows)
        self.clock.advance(0.01 + 0.0001 * rows * cells + self.slow(rows, cells))


class OnMachine(FakeFamily):
    def __init__(self, machine: Machine) -> None:
        super().__init__("edge")
        self.machine = machine
        self.on_decode: Callable[[int], object] = lambda rows: None
        self.encode_s = 0.0

    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        self.machine.clock.advance(self.encode_s * (1 + len(prompts)))
        return super().encode_text(prompts)

    def predict(self, latent: Tensor, timestep: Tensor, g: Tensor, c: Conditioning) -> Tensor:
        self.machine.took(len(latent), latent[0, 0].numel())
        return super().predict(latent, timestep, g, c)

    def decode(self, latent: Tensor) -> list[Picture]:
        self.on_decode(len(latent))
        self.machine.clock.advance(0.001 * latent[:, 0].numel())
        return super().decode(latent)


@asynccontextmanager
async def a_stage(machine: Machine, **options: Any) -> AsyncIterator[Worker]:
    family = OnMachine(machine)
    worker = Worker(
        family, stage="tower", tier="edge", capacity=100, clock=machine.clock, **options
    )
    await worker.warm_up(16, "ddim")
    try:
        yield worker
    finally:
        worker.close()


async def some(worker: Worker, count: int, edge: int = 16, steps: int = 10) -> float:
    """Seconds for so many pictures at once."""
    packet = a_packet(f"tower:{steps}", width=edge, height=edge)
    clock = worker._clock
    began = clock.now()
    await asyncio.gather(*(all_of(worker, replace(packet, seed=n)) for n in range(count)))
    return clock.now() - began


async def test_pictures_of_another_size_change_nothing_for_those_of_this_one() -> None:
    machine = Machine(slow=lambda rows, cells: 0.01 * rows if cells > CELLS else 0.0)
    async with a_stage(machine) as worker:
        await some(worker, 32)
        machine.passes.clear()
        await some(worker, 32)
        before = list(machine.passes)
        for _ in range(3):
            await some(worker, 32, edge=32)
            machine.passes.clear()
            await some(worker, 32)
            assert machine.passes == before


async def test_a_stall_costs_its_own_seconds_and_no_batch() -> None:
    machine = Machine()
    async with a_stage(machine) as worker:
        await some(worker, 32)
        before = await some(worker, 32)
        for _ in range(5):
            machine.slow = partial(lambda stalls, rows, cells: next(stalls, 0.0), iter([1.0]))
            assert await some(worker, 32) == pytest.approx(before + 1.0)
            assert await some(worker, 32) == pytest.approx(before)


async def test_large_batches_come_back_when_they_pay_again() -> None:
    """A neighbour that makes large passes slow for an hour, and is gone."""
    machine = Machine()
    async with a_stage(machine) as worker:
        await some(worker, 32)
        before = await some(worker, 32)
        machine.slow = lambda rows, cells: 0.5 if rows > 4 else 0.0
        for _ in range(5):
            await some(worker, 32)
        machine.passes.clear()
        await some(worker, 32, steps=100)
        assert sorted(machine.passes)[len(machine.passes) // 2] <= 4
        machine.slow = lambda rows, cells: 0.0
        await some(worker, 32, steps=300)
        assert await some(worker, 32) == pytest.approx(before, rel=0.05)


async def test_trying_larger_batches_costs_little() -> None:
    machine = Machine(slow=lambda rows, cells: 0.5 if rows > 4 else 0.0)
    async with a_stage(machine) as worker:
        await some(worker, 32, steps=300)
        machine.passes.clear()
        took_s = await some(worker, 32, steps=300)
        tried = sum(rows > 4 for rows in machine.passes)
        assert 0 < tried * 0.5 < 0.05 * took_s


async def test_batches_grow_past_what_a_disturbed_warm_up_found() -> None:
    machine = Machine(slow=lambda rows, cells: 1.0 * rows)
    async with a_stage(machine) as worker:
        machine.slow = lambda rows, cells: 0.0
        await some(worker, 64, steps=100)
        machine.passes.clear()
        await some(worker, 64)
        assert max(machine.passes) == 32


async def test_a_stage_knows_the_seconds_of_every_size_it_served() -> None:
    async with a_stage(Machine()) as worker:
        assert set(worker.status().step_s) == {CELLS}
        await some(worker, 1, edge=32, steps=5)
        status = worker.status()
    assert status.step_s[4 * CELLS][1] == pytest.approx(0.01 + 0.0001 * 4 * CELLS)
    assert status.seconds_per_step(guided=False, cells=CELLS) == pytest.approx(0.0116)
    assert status.decode_s == pytest.approx({CELLS: 0.001 * CELLS, 4 * CELLS: 0.004 * CELLS})


async def test_texts_are_told_in_the_seconds_that_calls_took_lately() -> None:
    """Also where the stage is faster, or slower, than when it warmed up."""
    async with a_stage(Machine()) as worker:
        assert worker.status().encode_s == 0
        worker._family.encode_s = 0.01  # type: ignore[attr-defined]  # of OnMachine
        for count in (1, 3):
            for _ in range(9):
                await some(worker, count, steps=1)
        told = worker.status()
    assert told.texts_s == pytest.approx({1: 0.02, 3: 0.04})
    assert told.encode_s == pytest.approx(0.02)
    assert told.seconds_to_encode(2) == pytest.approx(0.03)


async def test_every_size_that_is_served_keeps_up_with_what_it_takes() -> None:
    """Steps and pictures, of the size of the warm-up and of another one."""
    machine = Machine()
    async with a_stage(machine) as worker:
        for edge in (16, 32):
            await some(worker, 1, edge=edge, steps=5)
        machine.slow = lambda rows, cells: 0.5
        worker._family.on_decode = lambda rows: machine.clock.advance(0.25)  # type: ignore[attr-defined]
        for edge in (16, 32):
            for _ in range(9):
                await some(worker, 1, edge=edge, steps=1)
        told = worker.status()
    for cells in (CELLS, 4 * CELLS):
        assert told.step_s[cells][1] == pytest.approx(0.51 + 0.0001 * cells)
        assert told.decode_s[cells] == pytest.approx(0.25 + 0.001 * cells)


async def test_pictures_decoded_in_one_call_are_told_in_the_seconds_of_one() -> None:
    async with a_stage(Machine()) as worker:
        calls: list[int] = []
        worker._family.on_decode = calls.append  # type: ignore[attr-defined]  # of OnMachine
        for _ in range(8):
            await some(worker, 4)
        told = worker.status().decode_s
    assert calls == [4] * 8
    assert told == pytest.approx({CELLS: 0.001 * CELLS})


async def test_what_waits_is_told_in_the_seconds_of_its_size() -> None:
    async with a_stage(Machine(), mode="off") as worker:
        await some(worker, 1, edge=32, steps=5)
        told: list[float] = []
        for edge in (16, 32):
            packet = a_packet("tower:10", width=edge, height=edge)
            running = asyncio.create_task(all_of(worker, packet))
            while not worker.status().queued:
                await asyncio.sleep(0)
            told.append(worker.status().queue_s)
            await running
    assert told[0] == pytest.approx(10 * 0.0116 + 0.001 * CELLS)
    assert told[1] == pytest.approx(10 * 0.0164 + 0.004 * CELLS)


async def test_a_pass_that_memory_does_not_hold_is_not_tried_again() -> None:
    machine = Machine(slow=lambda rows, cells: 1.0 * rows)

    async with a_stage(machine) as worker:

        def small(rows: int, cells: int) -> float:
            if rows > 8:
                raise torch.OutOfMemoryError("no room for more than eight rows")
            return 0.0

        machine.slow = small
        await some(worker, 32, steps=20)
        machine.passes.clear()
        await some(worker, 32, steps=20)
    assert 4 <= max(machine.passes) <= 8
