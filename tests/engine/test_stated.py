"""Stages whose seconds are stated, on a virtual clock: what each part is charged with, and who
shares a forward pass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from torch import Tensor

from diffusion_edge.batching import FIXED_ROWS
from diffusion_edge.emulation import Emulate
from diffusion_edge.engine.measure import ROWS
from diffusion_edge.engine.run import run_last_span
from diffusion_edge.engine.worker import Worker
from diffusion_edge.families.base import Conditioning
from diffusion_edge.packet import Packet
from diffusion_edge.request import SpanRecord
from tests.engine.test_worker import CELLS, a_packet, all_of, done
from tests.fakes import FakeClock, FakeFamily

NUMBER = Emulate(step_s=0.12, encode_s=0.1, decode_s=0.2)
CURVE = Emulate(step_s={1: 0.10, 2: 0.12, 4: 0.16, 8: 0.32}, encode_s=0.1, decode_s=0.2)
"""Four rows are worth it, eight only double the seconds of four."""


class Counting(FakeFamily):
    """Keeps the rows of every forward pass."""

    def __init__(self) -> None:
        super().__init__("edge")
        self.rows: list[int] = []

    def predict(self, latent: Tensor, t: Tensor, g: Tensor, c: Conditioning) -> Tensor:
        self.rows.append(len(latent))
        return super().predict(latent, t, g, c)


class Stage:
    """A worker of stated seconds, its clock, and the passes of its family."""

    def __init__(self, stated: Emulate, **options: Any) -> None:
        self.clock, self.family = FakeClock(), Counting()
        self.worker = Worker(
            self.family,
            stage="tower",
            tier="edge",
            capacity=100,
            clock=self.clock,
            emulate=stated,
            **options,
        )

    async def takes_s(self, packets: Sequence[Packet]) -> float:
        """Seconds for all of them at once; every picture is what it is alone."""
        began, self.family.rows = self.clock.now(), []
        made = await asyncio.gather(*(all_of(self.worker, packet) for packet in packets))
        self.spans: list[SpanRecord] = []
        for packet, events in zip(packets, made, strict=True):
            assert done(events).picture == run_last_span(FakeFamily("edge"), packet)[1]
            self.spans += done(events).spans
        return self.clock.now() - began


@asynccontextmanager
async def a_stage(stated: Emulate, **options: Any) -> AsyncIterator[Stage]:
    stage = Stage(stated, **options)
    await stage.worker.warm_up(16, "ddim")
    try:
        yield stage
    finally:
        stage.worker.close()


def some(count: int, steps: int = 3, **changes: Any) -> list[Packet]:
    return [a_packet(f"tower:{steps}", seed=seed, **changes) for seed in range(count)]


async def test_a_number_is_taken_by_each_sample_however_many_there_are() -> None:
    async with a_stage(NUMBER) as stage:
        assert await stage.takes_s(some(8)) == pytest.approx(8 * (0.1 + 3 * 0.12 + 0.2))
        assert set(stage.family.rows) == {1}
        stage.clock.advance(100.0)
        assert await stage.takes_s(some(1)) == pytest.approx(0.1 + 3 * 0.12 + 0.2)
        status = stage.worker.status()
    assert (status.batches, status.most_rows) == (False, None)
    assert status.step_s == {CELLS: {1: 0.12}}


async def test_a_curve_charges_a_pass_with_the_seconds_of_its_rows() -> None:
    async with a_stage(CURVE) as stage:
        took_s = await stage.takes_s(some(16, steps=20))
        passes = stage.family.rows
        charged_s = sum(stage.worker._parts.seconds.step(CELLS, rows) for rows in passes)
        assert took_s == pytest.approx(16 * (0.1 + 0.2) + charged_s)
        assert charged_s < 20 * 16 * 0.10 / 2
        status = stage.worker.status()
    assert sum(passes) == 16 * 20
    assert sorted(passes)[len(passes) // 2] == 4
    assert (status.batches, status.most_rows) == (True, ROWS[-1])
    assert status.step_s == {CELLS: CURVE.curve}


async def test_no_pass_is_larger_than_pays_and_nothing_is_learned() -> None:
    """What is stated cannot be found to be otherwise, so there is nothing to try."""
    async with a_stage(CURVE) as stage:
        await stage.takes_s(some(32, steps=50))
        assert max(stage.family.rows) == 4
        assert stage.worker.status().step_s == {CELLS: CURVE.curve}
        assert stage.worker.status().decode_s == {CELLS: 0.2}
    async with a_stage(Emulate(step_s={1: 0.1, 2: 0.2, 4: 0.4})) as stage:
        assert await stage.takes_s(some(4)) == pytest.approx(4 * 3 * 0.1)
        assert set(stage.family.rows) == {1}


async def test_a_guided_sample_is_one_row_of_what_is_stated() -> None:
    async with a_stage(CURVE) as stage:
        assert await stage.takes_s(some(1, guidance=3.0)) == pytest.approx(0.1 + 3 * 0.10 + 0.2)
        assert stage.family.rows == [2, 2, 2]
        await stage.takes_s(some(16, steps=20, guidance=3.0))
        assert max(stage.family.rows) == 8


async def test_between_the_rows_that_are_stated_seconds_are_on_the_line() -> None:
    async with a_stage(Emulate(step_s={1: 0.1, 3: 0.14})) as stage:
        assert await stage.takes_s(some(2, steps=40)) < 2 * 40 * 0.1
        doubles = stage.family.rows.count(2)
        assert doubles > 30
        again_s = await stage.takes_s(some(2, steps=40))
        passes = stage.family.rows
        assert again_s == pytest.approx(passes.count(2) * 0.12 + passes.count(1) * 0.1)


async def test_rows_are_bound_by_the_config() -> None:
    async with a_stage(CURVE, rows=2) as stage:
        await stage.takes_s(some(8, steps=10))
        assert max(stage.family.rows) == 2
        assert stage.worker.status().most_rows == 2


async def test_off_takes_one_after_another_though_a_curve_is_stated() -> None:
    async with a_stage(CURVE, mode="off") as stage:
        assert await stage.takes_s(some(4)) == pytest.approx(4 * (0.1 + 3 * 0.10 + 0.2))
        assert set(stage.family.rows) == {1}
        assert not stage.worker.status().batches


async def test_a_reproducible_pass_takes_the_seconds_of_its_fixed_rows() -> None:
    async with a_stage(CURVE, mode="reproducible") as stage:
        assert FIXED_ROWS == 8
        assert await stage.takes_s(some(1)) == pytest.approx(0.1 + 3 * 0.32 + 0.2)
        assert stage.family.rows == [8, 8, 8]


async def test_texts_and_pictures_are_made_one_by_one_beside_batches() -> None:
    async with a_stage(CURVE) as stage:
        await stage.takes_s(some(6))
        assert [(span.encode_s, span.decode_s) for span in stage.spans] == [
            pytest.approx((0.1, 0.2))
        ] * 6


@pytest.mark.parametrize(
    ("stated", "step_s"),
    [(NUMBER, 4 * 0.12), (CURVE, 0.16)],
    ids=["in proportion to cells", "as so many more rows"],
)
async def test_stated_seconds_grow_with_the_picture(stated: Emulate, step_s: float) -> None:
    async with a_stage(stated) as stage:
        large = some(1, steps=2, guidance=3.0, width=32, height=32)
        assert await stage.takes_s(large) == pytest.approx(0.1 + 2 * step_s + 4 * 0.2)
