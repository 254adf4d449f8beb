"""Time for a worker: a clock that tests can replace, and emulation of slower hardware."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Protocol, TypeVar

Result = TypeVar("Result")


class Clock(Protocol):
    """Seconds that only count: they are no time of day, and another node's are others."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class RealClock:
    def now(self) -> float:
        return time.perf_counter()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Pace:
    """Makes a run of parts take the seconds stated for each, counted from the start of the run.

    What a sleep overshoots, the next one makes up, so that the total holds. A part whose real
    work took longer than stated is an overrun.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due = clock.now()
        self.slept_s = 0.0
        self.overruns = 0

    def restart(self) -> None:
        """Counts from now on, after a pause."""
        self._due = self._clock.now()

    async def keep(self, stated_s: float, work: Awaitable[Result]) -> Result:
        began = self._clock.now()
        result = await work
        ended = self._clock.now()
        self._due += stated_s
        self.overruns += ended - began > stated_s
        if ended < self._due:
            await self._clock.sleep(self._due - ended)
            self.slept_s += self._clock.now() - ended
        return result
