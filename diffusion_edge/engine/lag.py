"""How late an event loop is: it sleeps again and again, and notes by how much longer that took.

A process that waits for a CPU, or for its interpreter, wakes late. What it then measures of others
is its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from diffusion_edge.engine.pace import Clock

TICK_S = 0.02
KEPT_S = 1.0
"""What was longer ago does not count."""


class Lag:
    """Of the loop that it watches in, as long as it does."""

    def __init__(self, clock: Clock, tick_s: float = TICK_S) -> None:
        self._clock, self._tick_s = clock, tick_s
        self._late: deque[tuple[float, float]] = deque()  # when a tick ended, and how late
        self._slept_at = clock.now()

    def worst_s(self) -> float:
        """Seconds by which the loop woke late, at worst, or is late now."""
        now = self._clock.now()
        late = (late_s for at, late_s in self._late if at >= now - KEPT_S)
        return max(*late, now - self._slept_at - self._tick_s, 0.0)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        ticks = asyncio.create_task(self.watch())
        try:
            yield
        finally:
            ticks.cancel()
            await asyncio.gather(ticks, return_exceptions=True)

    async def watch(self) -> None:
        while True:
            self._slept_at = self._clock.now()
            await self._clock.sleep(self._tick_s)
            self._note(self._clock.now())

    def _note(self, now: float) -> None:
        self._late.append((now, now - self._slept_at - self._tick_s))
        while self._late[0][0] < now - KEPT_S:
            self._late.popleft()
