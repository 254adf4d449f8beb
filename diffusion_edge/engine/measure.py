"""What a stage takes: seconds of each part, and memory."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from diffusion_edge.config import Emulate
from diffusion_edge.engine import run as core
from diffusion_edge.engine.pace import Clock
from diffusion_edge.families.base import Family
from diffusion_edge.packet import Packet
from diffusion_edge.types import Plan

ROWS = (1, 2, 4, 8)
REPEATS = 3


@dataclass(frozen=True)
class Seconds:
    """What the parts of a span take: a step by rows of its forward pass, encode, decode."""

    step_s: Mapping[int, float]
    encode_s: float
    decode_s: float

    @classmethod
    def stated(cls, emulate: Emulate) -> Seconds:
        return cls({1: emulate.step_s, 2: emulate.step_s}, emulate.encode_s, emulate.decode_s)

    def step(self, rows: int) -> float:
        return self.step_s[min(self.step_s, key=lambda known: abs(known - rows))]

    def after_step(self, rows: int, took_s: float) -> Seconds:
        """With one more step seen: a tenth of the way towards it."""
        known = self.step(rows)
        return replace(self, step_s={**self.step_s, rows: known + 0.1 * (took_s - known)})


async def measure(
    family: Family,
    size: int,
    solver: str,
    run: Callable[[Callable[[], Any]], Awaitable[Any]],
    clock: Clock,
) -> Seconds:
    """Medians over images of `size` pixels; `run` runs a function where the stage's work runs."""

    async def timed(work: Callable[[], Any]) -> tuple[float, Any]:
        result, taken = await run(work), []
        for _ in range(REPEATS):
            began = clock.now()
            await run(work)
            taken.append(clock.now() - began)
        return median(taken), result

    packet = probe(family, size, solver)
    encode_s, trajectory = await timed(partial(core.begin, family, packet))
    step_s = {
        rows: (await timed(partial(core.step, family, [trajectory] * rows)))[0] for rows in ROWS
    }
    decode_s, _ = await timed(partial(core.decode, family, trajectory))
    return Seconds(step_s, encode_s, decode_s)


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
