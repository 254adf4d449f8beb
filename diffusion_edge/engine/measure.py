"""What a stage takes: seconds of each part, and memory."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch

from diffusion_edge.batching import best_rows, nearest
from diffusion_edge.config import Emulate
from diffusion_edge.engine import run as core
from diffusion_edge.engine.lanes import Lanes
from diffusion_edge.engine.pace import Clock
from diffusion_edge.families.base import Family
from diffusion_edge.packet import Packet
from diffusion_edge.types import Plan

Result = TypeVar("Result")

ROWS = (1, 2, 4, 8, 16, 32)
REPEATS = 3


@dataclass(frozen=True)
class Seconds:
    """What the parts of a span take: a step by rows of its forward pass, encode, decode.

    lanes: by rows, into how many lanes such a batch is cut.
    """

    step_s: Mapping[int, float]
    encode_s: float
    decode_s: float
    lanes: Mapping[int, int] = field(default_factory=lambda: {1: 1})

    @classmethod
    def stated(cls, emulate: Emulate) -> Seconds:
        return cls({1: emulate.step_s, 2: emulate.step_s}, emulate.encode_s, emulate.decode_s)

    def step(self, rows: int) -> float:
        return nearest(self.step_s, rows)

    def lanes_for(self, rows: int) -> int:
        return nearest(self.lanes, rows)

    def after_step(self, rows: int, took_s: float) -> Seconds:
        """With one more step seen: a tenth of the way towards it."""
        known = self.step(rows)
        return replace(self, step_s={**self.step_s, rows: known + 0.1 * (took_s - known)})


async def measure(
    family: Family, size: int, solver: str, lanes: Lanes, clock: Clock, parts: int
) -> Seconds:
    """Medians over images of `size` pixels. parts: that a forward pass may be cut into.

    Batches grow until two sizes in a row brought no more rows a second, or memory ends.
    """

    async def timed(work: Callable[[], Awaitable[Result]]) -> tuple[float, Result]:
        result, taken = await work(), []
        for _ in range(REPEATS):
            began = clock.now()
            await work()
            taken.append(clock.now() - began)
        return median(taken), result

    packet = probe(family, size, solver)
    encode_s, trajectory = await timed(lambda: lanes.run(partial(core.begin, family, packet)))
    step_s: dict[int, float] = {}
    cuts: dict[int, int] = {}
    idle = 0
    for rows in ROWS:
        batch, found = [trajectory] * rows, {}
        try:
            for count in {1, min(parts, rows)}:
                found[count], _ = await timed(partial(lanes.step, family, batch, count))
        except torch.OutOfMemoryError:
            break
        cuts[rows] = min(found, key=found.__getitem__)
        step_s[rows] = found[cuts[rows]]
        idle = 0 if best_rows(step_s) == rows else idle + 1
        if idle == 2:
            break
    decode_s, _ = await timed(lambda: lanes.run(partial(core.decode, family, trajectory)))
    return Seconds(step_s, encode_s, decode_s, cuts)


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
