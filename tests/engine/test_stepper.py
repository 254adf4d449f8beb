"""The loop in batches: who is in a forward pass, what it changes, and what one failure costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_edge.batching import Batching
from diffusion_edge.engine.run import run_last_span
from diffusion_edge.engine.worker import Worker
from diffusion_edge.families.base import Conditioning, Family
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.packet import Packet, write
from diffusion_edge.plan import Plan
from diffusion_edge.request import Done
from tests.engine.test_worker import NOWHERE, Gate, a_packet, a_worker, all_of, done, gate
from tests.fakes import FakeFamily
from tests.theorem import BOUND, CONTROL, relative

__all__ = ["gate"]


class Passes:
    """Counts the rows of every forward pass; stands at a gate before each."""

    def __init__(self, family: FakeFamily, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        real = family.predict

        def counted(latent: Tensor, timestep: Tensor, guidance: Tensor, c: Conditioning) -> Tensor:
            self.rows.append(len(latent))
            return real(latent, timestep, guidance, c)

        monkeypatch.setattr(family, "predict", counted)


async def test_what_arrives_joins_at_the_next_boundary_and_leaves_when_done(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_worker(on_predict=gate, rows=8) as worker:
        monkeypatch.setattr(worker._parts.stepper, "_rows", lambda company: 8)
        passes = Passes(worker._family, monkeypatch)  # type: ignore[arg-type]  # a FakeFamily
        long = asyncio.create_task(all_of(worker, a_packet("tower:6")))
        await gate.reached()
        short = asyncio.create_task(all_of(worker, a_packet("tower:2", solver="ddim", seed=1)))
        await waiting(worker, 1)
        gate.open(1)
        await gate.reached()  # both stand in the second pass
        gate.open()
        assert done(await short).picture == alone("tower:2", solver="ddim", seed=1)
        assert done(await long).picture == alone("tower:6")
    assert passes.rows == [1, 2, 2, 1, 1, 1]


async def waiting(worker: Worker, texts: int) -> None:
    """Waits until so many requests wait for their texts."""
    async with asyncio.timeout(30):
        while len(worker._parts.texts.line.waiting()) < texts:
            await asyncio.sleep(0)


def alone(plan: str, **changes: Any) -> Any:
    return run_last_span(FakeFamily("edge"), a_packet(plan, **changes))[1]


async def test_only_what_can_share_a_pass_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solver, step count and guidance value may differ; size and being guided may not."""
    packets = [
        a_packet("tower:4", guidance=2.0),
        a_packet("tower:5", guidance=7.0, solver="euler"),
        a_packet("tower:4"),
        a_packet("tower:4", guidance=3.0, width=32),
    ]
    async with a_worker() as worker:
        monkeypatch.setattr(worker._parts.stepper, "_rows", lambda company: 8)
        passes = Passes(worker._family, monkeypatch)  # type: ignore[arg-type]  # a FakeFamily
        keys = [worker._parts.sample(packet, now=0.0).key for packet in packets]
        assert keys[0] == keys[1]
        assert len(set(keys)) == 3
        await asyncio.gather(*(all_of(worker, packet) for packet in packets))
    assert max(passes.rows) == 4
    assert sum(passes.rows) == 2 * 4 + 2 * 5 + 4 + 2 * 4


async def test_off_runs_one_request_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []

    async def one(worker: Worker, seed: int, steps: int) -> None:
        await all_of(worker, a_packet(f"tower:{steps}", seed=seed))
        ended.append(seed)

    async with a_worker(mode="off") as worker:
        passes = Passes(worker._family, monkeypatch)  # type: ignore[arg-type]  # a FakeFamily
        await asyncio.gather(*(one(worker, seed, 6 - seed) for seed in range(3)))
    assert set(passes.rows) == {1}
    assert ended == [0, 1, 2]


async def test_one_that_fails_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_worker() as worker:
        monkeypatch.setattr(worker._parts.stepper, "_rows", lambda company: 8)
        family = worker._family
        real = family.predict

        def picky(latent: Tensor, timestep: Tensor, guidance: Tensor, c: Conditioning) -> Tensor:
            if (guidance == 5.0).any():
                raise FloatingPointError("this one cannot be stepped")
            return real(latent, timestep, guidance, c)

        monkeypatch.setattr(family, "predict", picky)
        good, bad, other = await asyncio.gather(
            all_of(worker, a_packet("tower:3", guidance=2.0)),
            all_of(worker, a_packet("tower:3", guidance=5.0)),
            all_of(worker, a_packet("tower:3", guidance=3.0)),
            return_exceptions=True,
        )
        assert isinstance(bad, FloatingPointError)
        for events in (good, other):
            assert isinstance(events, list)
            assert isinstance(events[-1], Done)
        assert worker.status().queued == 0


class Refusing:
    """Forward passes of a family, of which those fail that `refuses` names.

    rows: of every pass. failed: how many were refused.
    """

    def __init__(
        self, family: Any, refuses: Callable[[Refusing, Tensor], bool], patch: pytest.MonkeyPatch
    ) -> None:
        self.rows: list[int] = []
        self.failed = 0
        real = family.predict

        def predict(latent: Tensor, timestep: Tensor, guidance: Tensor, c: Conditioning) -> Tensor:
            self.rows.append(len(latent))
            if refuses(self, guidance):
                self.failed += 1
                raise torch.OutOfMemoryError(f"no room for {len(latent)} rows")
            return real(latent, timestep, guidance, c)  # type: ignore[no-any-return]

        patch.setattr(family, "predict", predict)


async def eight(worker: Worker, **changes: Any) -> list[Any]:
    """What comes of eight requests of 20 steps that are there at the same time."""
    packets = [a_packet("tower:20", seed=seed, **changes) for seed in range(8)]
    made = (all_of(worker, packet) for packet in packets)
    return await asyncio.gather(*made, return_exceptions=True)


@pytest.mark.parametrize("most", [4, 2, 1])
async def test_a_batch_that_is_too_large_fails_once_and_goes_on_in_smaller_ones(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_worker() as worker:
        monkeypatch.setattr(worker._parts.stepper, "_rows", lambda company: 8)
        passes = Refusing(worker._family, lambda p, _: p.rows[-1] > most, monkeypatch)
        for seed, events in enumerate(await eight(worker)):
            assert done(events).picture == alone("tower:20", seed=seed)
    assert passes.failed == 8 // most - 1
    assert len(passes.rows) == passes.failed + 20 * 8 // most


async def test_a_failure_that_passes_loses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_worker() as worker:
        monkeypatch.setattr(worker._parts.stepper, "_rows", lambda company: 8)
        passes = Refusing(worker._family, lambda p, _: len(p.rows) == 7, monkeypatch)
        assert [len(events) for events in await eight(worker)] == [3] * 8
        assert passes.rows == [8] * 7 + [4, 4] * 14
        passes.rows.clear()
        await eight(worker)
    assert passes.rows[:6] == [8] * 6  # what comes later has not failed yet


async def test_what_fails_by_itself_is_found_and_slows_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_worker() as worker:
        monkeypatch.setattr(worker._parts.stepper, "_rows", lambda company: 18)
        passes = Refusing(
            worker._family, lambda _, guidance: bool((guidance == 5.0).any()), monkeypatch
        )
        good, bad = await asyncio.gather(
            eight(worker, guidance=2.0),
            asyncio.gather(all_of(worker, a_packet("tower:20", guidance=5.0, seed=9))),
            return_exceptions=True,
        )
        assert isinstance(bad, torch.OutOfMemoryError)
        assert isinstance(good, list)
        assert [len(events) for events in good] == [3] * 8
    assert passes.rows[0] == 18
    assert passes.failed <= 5
    assert passes.rows[-19:] == [16] * 19


async def test_random_cancels_leave_the_loop_empty() -> None:
    async def some_of(worker: Worker, number: int) -> None:
        events = worker.run(write(a_packet(f"tower:{2 + number % 7}", seed=number)), NOWHERE)
        with suppress(StopAsyncIteration):
            for _ in range(1 + number % 3):
                await anext(events)
                await asyncio.sleep(0)
        await events.aclose()

    async with a_worker(capacity=300) as worker:
        await asyncio.gather(*(some_of(worker, number) for number in range(300)))
        assert worker.status().queued == 0
        assert worker._parts.stepper.line._waiters == []
        assert isinstance(done(await all_of(worker, a_packet())), Done)


# ---------------------------------------------------------------------------- a real denoiser


class Kept:
    """A family whose final latents are kept, in the order of the seeds asked for."""

    def __init__(self, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
        self.latents: list[Tensor] = []
        real = family.decode

        def decode(latent: Tensor) -> Any:
            self.latents += torch.split(latent, 1)
            return real(latent)

        monkeypatch.setattr(type(family), "decode", lambda self, latent: decode(latent))


def requests(family: Family) -> list[Packet]:
    """Of several prompts, solvers, step counts and guidance values."""
    kinds = [("ddim", 6, 2.0), ("dpmpp-2m", 8, 5.0), ("euler", 7, 3.0), ("unipc", 9, 4.0)]
    return [
        a_packet(
            f"hall:{steps}",
            prompt=("a red circle", "a blue square on white")[number % 2],
            solver=solver,
            guidance=guidance,
            seed=number,
            latent_space=family.latent_space,
        )
        for number, (solver, steps, guidance) in enumerate(kinds)
    ]


async def latents(
    family: Family,
    mode: Batching,
    threads: int,
    groups: Sequence[Sequence[Packet]],
    patch: pytest.MonkeyPatch,
) -> list[Tensor]:
    """Final latents of packets that arrive in groups, by seed."""
    by_seed: dict[int, Tensor] = {}
    with patch.context() as within:
        kept = Kept(family, within)
        worker = Worker(family, stage="hall", tier="cloud", mode=mode, rows=8, threads=threads)
        await worker.warm_up(16, "ddim")
        within.setattr(worker._parts.stepper, "_rows", lambda company: 8)
        kept.latents.clear()
        try:
            for group in groups:
                before = len(kept.latents)
                seeds: list[int] = []

                async def one(packet: Packet, seeds: list[int] = seeds) -> None:
                    await all_of(worker, packet)
                    seeds.append(packet.seed)

                await asyncio.gather(*(one(packet) for packet in group))
                by_seed |= dict(zip(seeds, kept.latents[before:], strict=True))
        finally:
            worker.close()
    return [by_seed[seed] for seed in sorted(by_seed)]


@pytest.fixture(scope="module")
def family(tiny_family: Path) -> Family:
    torch.set_num_threads(1)
    return load_family(load_card(tiny_family), "cloud")


@pytest.mark.usefixtures("brief_warm_up")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("mode", ["in-flight", "reproducible"])
async def test_a_picture_does_not_depend_on_its_company(
    family: Family, mode: Batching, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within rounding of another batch size; in mode `reproducible` in no bit, cut or not."""
    packets = requests(family)
    made = partial(latents, family, mode, threads, patch=monkeypatch)
    together = await made([packets])
    one_by_one = await made([[packet] for packet in packets])
    in_pairs = await made([packets[2:], packets[:2]])
    for number, packet in enumerate(packets):
        other = run_last_span(family, replace(packet, seed=packet.seed + 10))[0]
        assert relative(other, one_by_one[number]) > CONTROL
        for batched in (together, in_pairs):
            if mode == "reproducible":
                assert torch.equal(batched[number], one_by_one[number])
            assert relative(batched[number], one_by_one[number]) <= BOUND
        whole = run_last_span(family, replace(packet, plan=Plan.parse(f"hall:{packet.steps}")))[0]
        assert relative(together[number], whole) <= BOUND


@pytest.mark.parametrize(("threads", "parts"), [(1, [8]), (2, [4, 4]), (3, [8]), (4, [2] * 4)])
@pytest.mark.parametrize("measured", [1, 2, 3, 4])
async def test_reproducible_passes_are_cut_alike_whatever_was_measured(
    measured: int, threads: int, parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another warm-up may find other lanes to be the faster ones; the bits must not show it."""
    async with a_worker(mode="reproducible", rows=8, threads=threads) as worker:
        worker._parts.known = replace(worker._parts.seconds, lanes={1: min(measured, threads)})
        passes = Passes(worker._family, monkeypatch)  # type: ignore[arg-type]  # a FakeFamily
        await all_of(worker, a_packet("tower:1", guidance=2.0))
    assert passes.rows == parts
