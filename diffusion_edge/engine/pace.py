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


class Pace(Protocol):
    """How fast parts are done on a device that does one after the other."""

    slept_s: float
    overruns: int

    def ends_at(self, seconds: float, asked_at: float) -> float:
        """When a part that begins now is expected to end, if it takes so many seconds."""

    async def keep(self, seconds: float, asked_at: float, work: Awaitable[Result]) -> Result:
        """The result of `work`. asked_at: on the clock, when the part could have begun on a free
        device."""


class OwnPace:
    """Parts take as long as they do."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.slept_s = 0.0
        self.overruns = 0

    def ends_at(self, seconds: float, asked_at: float) -> float:
        return self._clock.now() + seconds

    async def keep(self, seconds: float, asked_at: float, work: Awaitable[Result]) -> Result:
        return await work


class StatedPace:
    """Makes parts take the seconds stated for each.

    A part begins when the device is free and the part was asked for, whichever is later. So what a
    sleep overshoots, the next part makes up, and the total holds, but no part makes up for time
    in which another one had the device, or nothing did. A part whose real work took longer than
    stated is an overrun.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due = clock.now()
        self.slept_s = 0.0
        self.overruns = 0

    def ends_at(self, seconds: float, asked_at: float) -> float:
        return max(self._due, asked_at) + seconds

    async def keep(self, seconds: float, asked_at: float, work: Awaitable[Result]) -> Result:
        """Not before it is due."""
        began = self._clock.now()
        self._due = self.ends_at(seconds, asked_at)
        result = await work
        ended = self._clock.now()
        self.overruns += ended - began > seconds
        if ended < self._due:
            await self._clock.sleep(self._due - ended)
            self.slept_s += self._clock.now() - ended
        return result
