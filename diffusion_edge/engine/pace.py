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
    """Makes parts take the seconds stated for each, on one device that does one after the other.

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

    async def keep(self, stated_s: float, asked_at: float, work: Awaitable[Result]) -> Result:
        """The result of `work`, not before it is due. asked_at: on the clock, when the part could
        have begun on a free device."""
        began = self._clock.now()
        self._due = max(self._due, asked_at) + stated_s
        result = await work
        ended = self._clock.now()
        self.overruns += ended - began > stated_s
        if ended < self._due:
            await self._clock.sleep(self._due - ended)
            self.slept_s += self._clock.now() - ended
        return result
