"""Batches cut into lanes: the same latents, nothing left running, one failure told."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_edge.engine import run as core
from diffusion_edge.engine.lanes import Lanes, cut, leave_cores_to_lanes
from diffusion_edge.engine.measure import REPEATS, measure
from diffusion_edge.engine.run import Trajectory
from diffusion_edge.families.base import Conditioning, Family
from diffusion_edge.request import Picture
from tests.engine.test_worker import a_packet
from tests.fakes import FakeClock, FakeFamily
from tests.theorem import BOUND, CONTROL, relative


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    made = Lanes("test", 2)
    yield made
    made.close()


def some(family: FakeFamily, count: int) -> list[Trajectory]:
    return [core.begin(family, a_packet("tower:4", seed=seed)) for seed in range(count)]


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (3, 2), (7, 3), (4, 4)])
def test_parts_are_in_order_and_even(rows: int, count: int) -> None:
    parts = [list(range(rows))[part] for part in cut(rows, count)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(parts) == count


async def test_lanes_run_side_by_side_and_change_nothing(lanes: Lanes) -> None:
    family = FakeFamily("edge")
    batch = some(family, 5)
    expected = core.step(family, batch)
    together = threading.Barrier(2, timeout=30)  # broken unless both lanes are in predict at once
    family.on_predict = together.wait
    after = await lanes.step(family, batch, lanes=2)
    assert [t.seed for t in after] == [t.seed for t in batch]
    for one, other in zip(after, expected, strict=True):
        assert one.position == other.position == 1
        assert relative(one.latent, other.latent) <= BOUND


async def test_one_guided_trajectory_has_a_row_for_each_lane(lanes: Lanes) -> None:
    family = FakeFamily("edge")
    before = core.begin(family, a_packet("tower:4", guidance=3.0))
    expected = core.step(family, [before])[0].latent
    together = threading.Barrier(2, timeout=30)
    family.on_predict = together.wait
    (after,) = await lanes.step(family, [before], lanes=2)
    assert relative(after.latent, expected) <= BOUND
    assert relative(before.latent, expected) > CONTROL


async def test_a_failure_is_told_after_the_other_lane_has_ended(lanes: Lanes) -> None:
    ended = threading.Event()

    class Broken(FakeFamily):
        def predict(
            self, latent: Tensor, timestep: Tensor, guidance: Tensor, c: Conditioning
        ) -> Tensor:
            if len(latent) == 1:
                raise FloatingPointError("the first lane")
            result = super().predict(latent, timestep, guidance, c)
            ended.set()
            return result

    family = Broken("edge")
    with pytest.raises(FloatingPointError):
        await lanes.step(family, some(family, 3), lanes=2)
    assert ended.is_set()


async def test_closing_leaves_no_thread_waiting_for_a_part() -> None:
    """Closed while a step's second part is still queued behind other work."""
    family, blocked, entered = FakeFamily("edge"), threading.Event(), threading.Event()
    lanes = Lanes("test", 2)
    try:
        other = lanes._in(1, 1, partial(blocked.wait, 30))
        family.on_predict = entered.set
        stepping = asyncio.ensure_future(lanes.step(family, some(family, 2), lanes=2))
        assert await asyncio.to_thread(entered.wait, 30)
        lanes.close()
    finally:
        blocked.set()
    async with asyncio.timeout(30):
        assert len(await stepping) == 2
    assert other.result()


@pytest.mark.parametrize(("count", "each"), [(1, 4), (2, 2), (3, 1), (4, 1)])
async def test_all_lanes_together_use_no_more_threads_than_the_stage_has(
    count: int, each: int
) -> None:
    lanes = Lanes("test", 4)
    seen: list[int] = []
    family = FakeFamily("edge", on_predict=lambda: seen.append(torch.get_num_threads()))
    try:
        await lanes.step(family, some(family, 4), count)
        assert seen == [each] * count
        await lanes.step(family, some(family, 4), 1)  # what lanes were set to is not kept
        assert seen[count:] == [4]
    finally:
        lanes.close()


def test_where_models_are_loaded_torch_has_one_thread() -> None:
    def loading() -> int:
        torch.set_num_threads(3)
        leave_cores_to_lanes()
        return torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(loading).result() == 1
    finally:
        torch.set_num_threads(before)


class Timed(Lanes):
    """Two lanes whose passes take the given seconds, by how many lanes they are cut into."""

    def __init__(self, clock: FakeClock, took_s: Mapping[int, float]) -> None:
        super().__init__("timed", 2)
        self._clock, self._took_s = clock, took_s

    def step(
        self, family: Family, trajectories: Sequence[Trajectory], lanes: int
    ) -> Awaitable[list[Trajectory]]:
        self._clock.advance(self._took_s[lanes])
        return super().step(family, trajectories, lanes)


@pytest.mark.parametrize(("took_s", "faster"), [({1: 0.2, 2: 0.1}, 2), ({1: 0.1, 2: 0.2}, 1)])
async def test_warm_up_takes_the_faster_of_one_pass_and_lanes(
    took_s: dict[int, float], faster: int
) -> None:
    clock = FakeClock()
    lanes = Timed(clock, took_s)
    try:
        seconds = await measure(FakeFamily("edge"), (16,), "ddim", lanes, clock, 2)
    finally:
        lanes.close()
    assert [seconds.lanes_for(16, rows) for rows in (2, 4)] == [faster, faster]
    assert [seconds.step(16, rows) for rows in (2, 4)] == pytest.approx([0.1, 0.1])
    assert seconds.step(16, 1) == pytest.approx(took_s[1])  # one row cannot be cut


@pytest.mark.parametrize(
    ("took_s", "known"),
    [
        ({}, (1, 2, 4, 8, 16, 32)),  # twice the rows in the same time
        ({2: 0.2, 4: 0.4}, (1, 2, 4)),
        ({2: 0.2, 8: 0.2, 16: 0.2, 32: 0.4}, (1, 2, 4, 8, 16, 32)),
        ({2: 0.2, 8: 0.4, 16: 0.8, 32: 0.1}, (1, 2, 4, 8, 16)),
    ],
)
async def test_warm_up_tries_larger_batches_until_two_in_a_row_gained_nothing(
    took_s: dict[int, float], known: tuple[int, ...]
) -> None:
    """A pass takes 0.1 s of as many rows as are not named."""
    clock, only = FakeClock(), Lanes("test", 1)

    class ByRows(FakeFamily):
        def predict(
            self, latent: Tensor, timestep: Tensor, guidance: Tensor, c: Conditioning
        ) -> Tensor:
            clock.advance(took_s.get(len(latent), 0.1))
            return super().predict(latent, timestep, guidance, c)

    try:
        seconds = await measure(ByRows("edge"), (16,), "ddim", only, clock, 1)
    finally:
        only.close()
    assert tuple(seconds.step_s[16]) == known


async def test_warm_up_cuts_no_more_than_there_are_threads() -> None:
    family = FakeFamily("edge")
    for threads, allowed in ((1, {1}), (2, {1, 2})):
        lanes = Lanes("test", threads)
        try:
            seconds = await measure(family, (16,), "ddim", lanes, FakeClock(), threads)
        finally:
            lanes.close()
        (curve,) = seconds.step_s.values()
        assert set(seconds.lanes) == {16 * rows for rows in curve}
        assert set(seconds.lanes.values()) <= allowed
        assert seconds.lanes_for(16, 1) == 1


async def test_warm_up_counts_neither_the_first_pass_nor_one_stall() -> None:
    """Of each number of rows: what is built or read at the first pass is not seen again."""
    clock, only, passes = FakeClock(), Lanes("test", 1), Counter[int]()

    class Cold(FakeFamily):
        def predict(
            self, latent: Tensor, timestep: Tensor, guidance: Tensor, c: Conditioning
        ) -> Tensor:
            passes[len(latent)] += 1
            clock.advance({1: 60.0, 3: 9.0}.get(passes[len(latent)], 0.1))
            return super().predict(latent, timestep, guidance, c)

    try:
        seconds = await measure(Cold("edge"), (16,), "ddim", only, clock, 1)
    finally:
        only.close()
    assert set(passes.values()) == {1 + REPEATS}
    assert [seconds.step(16, rows) for rows in passes] == pytest.approx([0.1] * len(passes))


class ByCells(FakeFamily):
    """A forward pass takes a millisecond for every 16 cells, a decoding two."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__("edge")
        self._clock = clock

    def predict(self, latent: Tensor, t: Tensor, guidance: Tensor, c: Conditioning) -> Tensor:
        self._clock.advance(latent[:, 0].numel() / 16_000)
        return super().predict(latent, t, guidance, c)

    def decode(self, latent: Tensor) -> list[Picture]:
        self._clock.advance(latent[:, 0].numel() / 8_000)
        return super().decode(latent)


async def test_warm_up_measures_of_other_sizes_what_one_picture_takes(lanes: Lanes) -> None:
    clock = FakeClock()
    seconds = await measure(ByCells(clock), (16, 64, 32), "ddim", lanes, clock, 1)
    assert set(seconds.step_s) == {16, 64, 256}
    assert seconds.step_s[64] == pytest.approx({1: 0.004, 2: 0.008})
    assert seconds.step_s[256] == pytest.approx({1: 0.016, 2: 0.032})
    assert seconds.decode_s == pytest.approx({16: 0.002, 64: 0.008, 256: 0.032})


async def test_warm_up_leaves_out_sizes_that_would_take_it_too_long(lanes: Lanes) -> None:
    """Two passes of one and two of two rows, at 0.3 s each."""
    clock = FakeClock()
    slow = FakeFamily("edge", on_predict=lambda: clock.advance(0.3))
    seconds = await measure(slow, (16, 32), "ddim", lanes, clock, 1)
    assert set(seconds.step_s) == {16}
    quick = FakeFamily("edge", on_predict=lambda: clock.advance(0.01))
    seconds = await measure(quick, (16, 32), "ddim", lanes, clock, 1)
    assert set(seconds.step_s) == {16, 64}


async def test_warm_up_ends_where_memory_does(lanes: Lanes) -> None:
    class Small(FakeFamily):
        def predict(
            self, latent: Tensor, timestep: Tensor, guidance: Tensor, c: Conditioning
        ) -> Tensor:
            if len(latent) > 2:
                raise torch.OutOfMemoryError("no room for more than two rows")
            return super().predict(latent, timestep, guidance, c)

    only = Lanes("test", 1)
    try:
        seconds = await measure(Small("edge"), (16,), "ddim", only, FakeClock(), 1)
    finally:
        only.close()
    assert set(seconds.step_s[16]) == {1, 2}
    assert seconds.rows(16, unit=1, waiting=100, most=32) < 4
    assert seconds.rows(64, unit=1, waiting=100, most=32) == 1
