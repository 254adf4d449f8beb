"""A link acted out by who sends over it: packets pass one after another and take their time.

asked -> waits for the packets before it -> passes at the rate of its time -> one delay -> there
"""

from __future__ import annotations

import asyncio

import numpy as np

from diffusion_edge.engine.pace import Clock
from diffusion_edge.traces import Trace, transfer_s


class EmulatedLink:
    """One direction of a link. A packet begins to pass when the one before it has passed.

    rates: bytes a second over time, which begins when this is made. What a sleep overshoots the
    next packet makes up, so that the link carries what it is said to.
    """

    def __init__(self, rates: Trace, delay_s: float, clock: Clock) -> None:
        self._rates = rates
        self._delay_s = delay_s
        self._clock = clock
        self._origin = self._passed_at = clock.now()
        self._factor = 1.0
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def in_use(self) -> bool:
        """Whether something passes or waits to."""
        return self._turn.locked()

    async def carry(self, nbytes: float) -> float:
        """Returns when so many bytes have arrived: the seconds that they waited for other packets.
        Cancelling this takes them off the link."""
        asked_at = self._clock.now()
        async with self._turn:
            began = self._passed_at = max(asked_at, self._passed_at)
            while nbytes > 0:
                nbytes -= await self._pass(nbytes)
            there_at = self._passed_at + self._delay_s
        await self._clock.sleep(max(0.0, there_at - self._clock.now()))
        return began - asked_at

    def throttle(self, factor: float, *, restart: bool = False) -> None:
        """From now on the link has `factor` times its rates, for what is passing, too. restart:
        they begin again, as at the start."""
        self._factor = factor
        if restart:
            self._origin = self._clock.now()
        self._changed.set()

    async def _pass(self, nbytes: float) -> float:
        """Bytes that have passed: all, or those until the link changed."""
        since, origin, factor = self._passed_at, self._origin, self._factor
        start_s = max(0.0, since - origin)
        ends, whole = since + transfer_s(self._rates, start_s, nbytes / factor), False
        self._changed.clear()
        try:
            whole = await self._unchanged_until(ends)
        finally:
            self._passed_at = ends if whole else min(max(since, self._clock.now()), ends)
        if whole:
            return nbytes
        stop_s = start_s + self._passed_at - since
        return factor * (self._rates.until(stop_s) - self._rates.until(start_s))

    async def _unchanged_until(self, time: float) -> bool:
        """Sleeps; False as soon as the link has changed."""
        left_s = time - self._clock.now()
        if left_s <= 0:
            return True
        sleep = asyncio.ensure_future(self._clock.sleep(left_s))
        change = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait((sleep, change), return_when=asyncio.FIRST_COMPLETED)
            return sleep.done()
        finally:
            for task in (sleep, change):
                task.cancel()
            await asyncio.gather(sleep, change, return_exceptions=True)


def steady(bytes_per_s: float) -> Trace:
    """A rate that does not change."""
    return Trace(np.array([0.0]), np.array([bytes_per_s]), 1.0)
