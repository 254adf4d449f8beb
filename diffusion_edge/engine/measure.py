"""What a stage takes: seconds of each part, and memory."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from diffusion_edge.batching import best_rows
from diffusion_edge.curves import cells_of
from diffusion_edge.engine import run as core
from diffusion_edge.engine.lanes import Lanes
from diffusion_edge.engine.pace import Clock
from diffusion_edge.engine.run import Trajectory
from diffusion_edge.engine.seconds import Recent, Seconds, Steps
from diffusion_edge.families.base import Family
from diffusion_edge.packet import Packet
from diffusion_edge.plan import Plan

ROWS = (1, 2, 4, 8, 16, 32)
REPEATS = 3

OTHERS_S = 1.0
"""Seconds for all sizes beside the first."""


async def measure(
    family: Family,
    sizes: Sequence[int],
    solver: str,
    lanes: Lanes,
    clock: Clock,
    parts: int,
) -> Seconds:
    """Over square images of `sizes` pixels: all of the first one, and of others what a single
    image takes, for as many as OTHERS_S leaves time for.

    parts: that a forward pass may be cut into.
    """
    stage = _Stage(family, solver, lanes, clock)
    size, *others = sizes
    known = await _first(stage, size, parts)
    ends = clock.now() + OTHERS_S
    for size in sorted(others):
        trajectory = await stage.begin(size)
        cells = _cells(trajectory)
        expected_s = known.step(cells, 1) + known.step(cells, 2) + known.decoding(cells)
        if clock.now() + 2 * expected_s > ends:
            break
        known = await _another(stage, trajectory, known)
    return known


async def _first(stage: _Stage, size: int, parts: int) -> Seconds:
    """Batches grow until two sizes in a row brought no more rows a second, or memory ends."""
    encode = {1: Recent((await stage.timed(lambda: stage.begin(size), REPEATS),))}
    trajectory = await stage.begin(size)
    cells, step_s, cuts = _cells(trajectory), dict[int, float](), dict[int, int]()
    too_many, idle = None, 0
    for rows in ROWS:
        try:
            found = {
                count: await stage.step_s([trajectory] * rows, count, REPEATS)
                for count in {1, min(parts, rows)}
            }
        except torch.OutOfMemoryError:
            too_many = cells * rows
            break
        cuts[cells * rows] = min(found, key=found.__getitem__)
        step_s[rows] = min(found.values())
        idle = 0 if best_rows(step_s) == rows else idle + 1
        if idle == 2:
            break
    decode = {cells: {1: Recent((await stage.decode_s(trajectory, REPEATS),))}}
    return Seconds({cells: Steps(step_s)}, encode, decode, cuts, too_many)


async def _another(stage: _Stage, trajectory: Trajectory, known: Seconds) -> Seconds:
    """With what one image of this trajectory's size takes, guided or not."""
    cells = _cells(trajectory)
    try:
        step_s = {
            rows: await stage.step_s([trajectory] * rows, known.lanes_for(cells, rows), 1)
            for rows in (1, 2)
        }
    except torch.OutOfMemoryError:
        return known
    decode_s = await stage.decode_s(trajectory, 1)
    return replace(
        known,
        steps={**known.steps, cells: Steps(step_s)},
        decode={**known.decode, cells: {1: Recent((decode_s,))}},
    )


@dataclass(frozen=True)
class _Stage:
    """What is measured. Every part runs once to warm it and then `repeats` times, of which the
    median counts."""

    family: Family
    solver: str
    lanes: Lanes
    clock: Clock

    def begin(self, size: int) -> Awaitable[Trajectory]:
        packet = probe(self.family, size, self.solver)
        return self.lanes.run(partial(core.begin, self.family, packet))

    async def step_s(self, batch: Sequence[Trajectory], lanes: int, repeats: int) -> float:
        return await self.timed(lambda: self.lanes.step(self.family, batch, lanes), repeats)

    async def decode_s(self, trajectory: Trajectory, repeats: int) -> float:
        work = partial(core.decode, self.family, trajectory)
        return await self.timed(lambda: self.lanes.run(work), repeats)

    async def timed(self, work: Callable[[], Awaitable[object]], repeats: int) -> float:
        await work()
        taken = []
        for _ in range(repeats):
            began = self.clock.now()
            await work()
            taken.append(self.clock.now() - began)
        return median(taken)


def _cells(trajectory: Trajectory) -> int:
    return cells_of(trajectory.latent.shape[1:])


def probe(family: Family, size: int, solver: str, steps: int = 8) -> Packet:
    """A packet to measure with; unguided, so that one image is one row."""
    return Packet(
        request_id="warm-up",
        prompt="",
        negative_prompt="",
        guidance=1.0,
        width=size,
        height=size,
        solver=solver,
        steps=steps,
        seed=0,
        position=0,
        plan=Plan.of(((family.stage, steps),)),
        latent_space=family.latent_space,
    )


def resident_bytes() -> int:
    """Resident memory of this process, 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
