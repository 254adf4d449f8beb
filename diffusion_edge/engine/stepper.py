"""The denoising loop of a replica: at every step boundary a new batch, by the rules of `batching`.

choose -> step -> release, until nothing is left. What joins or leaves meanwhile counts from the
next boundary on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from diffusion_edge.batching import Batching, Sample, company, next_batch
from diffusion_edge.engine.line import Line, apart
from diffusion_edge.engine.pace import Clock, Pace
from diffusion_edge.engine.run import Trajectory
from diffusion_edge.engine.turn import Seat


class Step(Protocol):
    """Steps trajectories that are so many rows of a forward pass."""

    def __call__(
        self, trajectories: Sequence[Trajectory], rows: int
    ) -> Awaitable[list[Trajectory]]: ...


@dataclass(eq=False)
class Entry:
    """A trajectory in the loop, which has its answer when `left` has come to 0; TimeoutError if it
    was to be given up before, by the clock's time; None for never."""

    sample: Sample
    trajectory: Trajectory
    left: int
    give_up: float | None = None
    answer: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    asked_at: float = 0.0
    began: float | None = None
    slept_s: float = 0.0
    overruns: int = 0


class Stepper:
    """Takes the steps of all trajectories on a replica.

    turn: held during a step; what shares it takes turns with the steps. rows: of a forward pass at
    most, asked at every boundary with those that could share it; None steps one sample at a time.
    pace: the device's. seconds: that a forward pass of so many cells and rows is known to take, or
    shall take. on_step: told cells, rows and seconds of every forward pass.
    """

    def __init__(
        self,
        step: Step,
        clock: Clock,
        turn: Seat,
        *,
        mode: Batching,
        rows: Callable[[Sequence[Sample]], int | None],
        pace: Pace,
        seconds: Callable[[int, int], float],
        on_step: Callable[[int, int, float], None],
    ) -> None:
        self._take_step = step
        self._clock = clock
        self._mode = mode
        self._rows = rows
        self._seconds = seconds
        self._turn = turn
        self._on_step = on_step
        self._pace = pace
        self.line: Line[Entry] = Line(self._boundary, turn)
        self.steps_run = 0

    async def take(self, entry: Entry) -> None:
        """Returns when the entry has taken its steps; cancelling this takes it out."""
        entry.asked_at = self._clock.now()
        await self.line.join(entry)

    async def _boundary(self, waiting: Sequence[Entry]) -> None:
        """One step of those who can take it together."""
        batch = self._choose(waiting)
        parts = await apart(self._step, batch) if batch else []
        too_large = len(parts) > 1 and sum(map(len, parts)) == len(batch)
        if too_large and self._mode != "reproducible":  # there all passes are of one size
            for part in parts:
                for entry in part:
                    entry.sample = replace(entry.sample, most=len(part) * entry.sample.rows)

    def _choose(self, waiting: Sequence[Entry]) -> list[Entry]:
        for entry in waiting:
            if entry.give_up is not None and self._clock.now() >= entry.give_up:
                entry.answer.set_exception(TimeoutError())
        waiting = [entry for entry in waiting if not entry.answer.done()]
        if not waiting:
            return []
        samples = [entry.sample for entry in waiting]
        rows = self._rows([samples[index] for index in company(samples)])
        chosen = next_batch(samples, rows or 0)
        return [waiting[index] for index in (chosen if rows else chosen[:1])]

    async def _step(self, batch: Sequence[Entry]) -> None:
        """One forward pass. If it fails, nobody has moved."""
        samples = [entry.sample for entry in batch]
        trajectories = self._padded([entry.trajectory for entry in batch], samples)
        cells, rows = samples[0].cells, len(trajectories) * samples[0].rows
        began, slept_s, overruns = self._clock.now(), self._pace.slept_s, self._pace.overruns
        work, seconds = self._take_step(trajectories, rows), self._seconds(cells, rows)
        # A pass cannot begin before all are there.
        asked_at = max(entry.asked_at for entry in batch)
        self._turn.does(batch, self._pace.ends_at(seconds, asked_at))
        after = await self._pace.keep(seconds, asked_at, work)
        self._on_step(cells, rows, self._clock.now() - began)
        for entry, trajectory in zip(batch, after, strict=False):
            entry.trajectory = trajectory
            entry.began = began if entry.began is None else entry.began
            entry.slept_s += self._pace.slept_s - slept_s
            entry.overruns += self._pace.overruns - overruns
            entry.left -= 1
            self.steps_run += 1
            if not entry.left and not entry.answer.done():
                entry.answer.set_result(None)

    def _padded(
        self, trajectories: list[Trajectory], samples: Sequence[Sample]
    ) -> list[Trajectory]:
        """In mode `reproducible` as many as always: a row then depends on no other one."""
        most = self._rows(samples) if self._mode == "reproducible" else None
        if most is None:
            return trajectories
        missing = max(most // samples[0].rows, 1) - len(trajectories)
        return trajectories + trajectories[:1] * missing
