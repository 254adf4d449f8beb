"""The denoising loop of a replica: at every step boundary a new batch, by the rules of `batching`.

choose -> step -> release, until nothing is left. What joins or leaves meanwhile counts from the
next boundary on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from diffusion_edge.batching import Batching, Sample, company, next_batch
from diffusion_edge.engine.pace import Clock, Pace
from diffusion_edge.engine.run import Trajectory


class Step(Protocol):
    """Steps trajectories that are so many rows of a forward pass."""

    def __call__(
        self, trajectories: Sequence[Trajectory], rows: int
    ) -> Awaitable[list[Trajectory]]: ...


@dataclass(eq=False)
class Entry:
    """A trajectory in the loop. `stepped` is set when `left` has come to 0; TimeoutError if the
    deadline (Unix seconds, 0 for none) passed before."""

    sample: Sample
    trajectory: Trajectory
    left: int
    deadline_unix_s: float = 0.0
    stepped: asyncio.Future[None] = field(
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
    pace, stated_s: for emulation, the device's pace and the seconds that a step of these samples
    shall take. on_step: told cells, rows and seconds of every forward pass.
    """

    def __init__(
        self,
        step: Step,
        clock: Clock,
        turn: asyncio.Lock,
        *,
        mode: Batching,
        rows: Callable[[Sequence[Sample]], int | None],
        pace: Pace,
        stated_s: Callable[[Sequence[Sample]], float | None],
        on_step: Callable[[int, int, float], None],
    ) -> None:
        self._take_step = step
        self._clock = clock
        self._turn = turn
        self._mode = mode
        self._rows = rows
        self._stated_s = stated_s
        self._on_step = on_step
        self._entries: list[Entry] = []
        self._loop: asyncio.Task[None] | None = None
        self._pace = pace
        self.steps_run = 0

    async def take(self, entry: Entry) -> None:
        """Returns when the entry has taken its steps; cancelling this takes it out."""
        entry.asked_at = self._clock.now()
        self._entries.append(entry)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())
        try:
            await entry.stepped
        finally:
            self._entries.remove(entry)

    async def _run(self) -> None:
        working = True
        while working:
            async with self._turn:
                batch = self._choose()
                working = bool(batch)
                if batch:
                    await self._step(batch)
            await asyncio.sleep(0)  # what has left or joined since is seen at the boundary

    def _choose(self) -> list[Entry]:
        waiting = [entry for entry in self._entries if not entry.stepped.done()]
        for entry in waiting:
            if entry.deadline_unix_s and self._clock.unix() > entry.deadline_unix_s:
                entry.stepped.set_exception(TimeoutError())
        waiting = [entry for entry in waiting if not entry.stepped.done()]
        if not waiting:
            return []
        samples = [entry.sample for entry in waiting]
        rows = self._rows([samples[index] for index in company(samples)])
        chosen = next_batch(samples, rows or 0)
        return [waiting[index] for index in (chosen if rows else chosen[:1])]

    async def _step(self, batch: Sequence[Entry]) -> None:
        samples = [entry.sample for entry in batch]
        trajectories = self._padded([entry.trajectory for entry in batch], samples)
        rows = len(trajectories) * samples[0].rows
        began, slept_s, overruns = self._clock.now(), self._pace.slept_s, self._pace.overruns
        work = self._take_step(trajectories, rows)
        stated_s, asked_at = self._stated_s(samples), batch[0].asked_at
        try:
            after = await (work if stated_s is None else self._pace.keep(stated_s, asked_at, work))
        except Exception as error:
            await self._failed(batch, error)
            return
        self._on_step(samples[0].cells, rows, self._clock.now() - began)
        for entry, trajectory in zip(batch, after, strict=False):
            entry.trajectory = trajectory
            entry.began = began if entry.began is None else entry.began
            entry.slept_s += self._pace.slept_s - slept_s
            entry.overruns += self._pace.overruns - overruns
            entry.left -= 1
            self.steps_run += 1
            if not entry.left and not entry.stepped.done():
                entry.stepped.set_result(None)

    def _padded(
        self, trajectories: list[Trajectory], samples: Sequence[Sample]
    ) -> list[Trajectory]:
        """In mode `reproducible` as many as always: a row then depends on no other one."""
        most = self._rows(samples) if self._mode == "reproducible" else None
        if most is None:
            return trajectories
        missing = max(most // samples[0].rows, 1) - len(trajectories)
        return trajectories + trajectories[:1] * missing

    async def _failed(self, batch: Sequence[Entry], error: Exception) -> None:
        """Of several, each steps alone, so that only what fails by itself is lost."""
        if len(batch) > 1:
            for entry in batch:
                await self._step([entry])
        elif not batch[0].stepped.done():
            batch[0].stepped.set_exception(error)
