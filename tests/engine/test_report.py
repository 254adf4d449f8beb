"""What a stage tells of the images that it holds, so that others can run its rules ahead."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_edge.batching import FIXED_ROWS, STRETCH
from diffusion_edge.emulation import Emulate
from diffusion_edge.engine.measure import ROWS
from diffusion_edge.engine.worker import Worker
from diffusion_edge.families.base import Conditioning
from diffusion_edge.request import Picture, Times
from diffusion_edge.view import Held
from tests.engine.test_worker import (
    CELLS,
    Gate,
    a_packet,
    a_worker,
    all_of,
    done,
    gate,
    half_way,
    handed,
)
from tests.fakes import FakeClock, FakeFamily

__all__ = ["gate"]


async def admitted(worker: Worker, number: int) -> None:
    async with asyncio.timeout(30):
        while worker.status().queued < number:
            await asyncio.sleep(0)


async def test_every_image_is_told_in_order_of_arrival_with_what_is_left_of_it(gate: Gate) -> None:
    async with a_worker(capacity=2, on_predict=gate) as worker:
        running = asyncio.create_task(all_of(worker, a_packet("tower:3", request_id="runs")))
        await gate.reached()
        passing = a_packet("tower:5,hall:2", request_id="passes", image=2, guidance=3.0, width=32)
        waiting = asyncio.create_task(all_of(worker, passing))
        await admitted(worker, 2)
        placeless = asyncio.create_task(handed(worker, half_way(request_id="handed")))
        await admitted(worker, 3)
        told = [
            (
                held.request,
                held.image,
                held.steps,
                held.rows,
                held.cells,
                held.encodes,
                held.decodes,
            )
            for held in worker.status().held
        ]
        assert told == [
            ("runs", 0, 3, 1, CELLS, False, True),
            ("passes", 2, 5, 2, 2 * CELLS, True, False),
            ("handed", 0, 2, 1, CELLS, True, True),
        ]
        waiting.cancel()
        gate.open()
        await asyncio.gather(running, placeless)
        assert worker.status().held == ()


async def test_a_step_counts_when_its_pass_has_ended(gate: Gate) -> None:
    async with a_worker(on_predict=gate) as worker:
        running = asyncio.create_task(all_of(worker, a_packet("tower:3")))
        for left in (3, 2, 1):
            await gate.reached()  # it stands in a pass
            assert [held.steps for held in worker.status().held] == [left]
            gate.open(1)
        done(await running)


async def test_text_and_picture_are_told_until_they_are_made() -> None:
    seen: list[Held] = []

    class Telling(FakeFamily):
        def encode_text(self, prompts: Sequence[str]) -> Conditioning:
            seen.extend(told())
            return super().encode_text(prompts)

        def predict(self, latent: Tensor, t: Tensor, g: Tensor, c: Conditioning) -> Tensor:
            seen.extend(told())
            return super().predict(latent, t, g, c)

        def decode(self, latent: Tensor) -> list[Picture]:
            seen.extend(told())
            return super().decode(latent)

    def told() -> Sequence[Held]:
        return worker.status().held if warm else ()

    warm = False
    worker = Worker(Telling("edge"), stage="tower", tier="edge")
    await worker.warm_up(16, "ddim")
    warm = True
    try:
        done(await all_of(worker, a_packet("tower:1")))
    finally:
        worker.close()
    assert [(held.encodes, held.steps, held.decodes) for held in seen] == [
        (True, 1, True),
        (False, 1, True),
        (False, 0, True),
    ]


async def test_due_times_are_told_from_now_and_fall_with_the_clock(gate: Gate) -> None:
    clock = FakeClock()
    async with a_worker(emulate=Emulate(step_s=1.0), clock=clock, on_predict=gate) as worker:
        packets = [a_packet("tower:4"), a_packet("tower:4", left=Times(due=5.0))]
        tasks = [asyncio.create_task(all_of(worker, packet)) for packet in packets]
        await gate.reached()
        assert [held.due_s for held in worker.status().held] == pytest.approx([4 * STRETCH, 5.0])
        clock.advance(7.0)
        assert [held.due_s for held in worker.status().held] == pytest.approx([4 * STRETCH - 7, -2])
        gate.open()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, ROWS[-1]),
        ({"rows": 6}, 6),
        ({"mode": "reproducible"}, FIXED_ROWS),
        ({"mode": "reproducible", "rows": 4}, 4),
        ({"mode": "off"}, None),
        ({"emulate": Emulate(step_s=0.1)}, None),
    ],
    ids=str,
)
async def test_a_stage_tells_the_rows_it_is_bound_to(
    options: dict[str, Any], most: int | None
) -> None:
    async with a_worker(**options) as worker:
        assert worker.status().most_rows == most


async def test_what_memory_did_not_hold_bounds_the_rows_that_are_told() -> None:
    class Small(FakeFamily):
        def predict(self, latent: Tensor, t: Tensor, g: Tensor, c: Conditioning) -> Tensor:
            if len(latent) > 4:
                raise torch.OutOfMemoryError("no room for more than four rows")
            return super().predict(latent, t, g, c)

    worker = Worker(Small("edge"), stage="tower", tier="edge")
    await worker.warm_up(16, "ddim")
    try:
        worker._parts.known = worker._parts.seconds.out_of_memory(CELLS, 8)
        assert worker.status().most_rows == 4
    finally:
        worker.close()


async def test_memory_is_told_as_it_is_used_and_not_as_it_was_asked_for() -> None:
    def told() -> int:
        return worker.status().resident_bytes

    touched = 2**26
    async with a_worker() as worker:
        before = told()
        with mmap.mmap(-1, 2**30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as asked:
            assert abs(told() - before) < touched / 4
            for start in range(0, touched, mmap.PAGESIZE):
                asked[start] = 1
            assert told() - before == pytest.approx(touched, rel=0.25)
