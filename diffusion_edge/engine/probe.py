"""A probe: bytes that mean nothing go to another stage the way of a packet, and are timed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from diffusion_edge.engine.lag import Lag
from diffusion_edge.engine.link import EmulatedLink
from diffusion_edge.engine.pace import Clock
from diffusion_edge.errors import StageLost

LONGEST_S = 4.0
"""A probe is cut off then, so that packets behind it do not wait for what nobody needs."""
TICK_S = 0.005
"""Of the watch over the sender's event loop: shorter than most probes."""
LATE, LATE_S = 0.25, 0.02
"""A probe may hold so large a share, or so many seconds, that its ends were late."""
_BLOCK = 2**16  # random ones, so that nothing on the way makes them fewer


Result = TypeVar("Result")


class Greets(Protocol):
    """How bytes that mean nothing reach a stage: the way of `Transport.run`. It answers once, by
    how many seconds its event loop was late (`lag`)."""

    def greet(self, stage: str, data: bytes) -> AsyncGenerator[float, None]: ...


async def probed(
    target: str, nbytes: int, link: EmulatedLink | None, forward: Greets, clock: Clock
) -> float | None:
    """Seconds until the stage `target` had so many bytes, over the emulated link if there is one.

    None where it would tell of something else: where that link is in use, packets tell what it
    takes; and where an end was late by more than LATE of the seconds, and by more than LATE_S. A
    probe that is cut off is told as LONGEST_S, less than it would have taken, and the next one will
    be the smaller. Raises StageLost and what `forward` raises.
    """
    if link is not None and link.in_use:
        return None
    lag = Lag(clock, TICK_S)
    async with lag.watching():
        crossed = await _within(LONGEST_S, _crossed(target, nbytes, link, forward, clock), clock)
        seconds, theirs_s = crossed or (LONGEST_S, 0.0)
        late_s = lag.worst_s() + theirs_s
    return None if late_s > max(LATE * seconds, LATE_S) else seconds


async def _within(most_s: float, work: Coroutine[Any, Any, Result], clock: Clock) -> Result | None:
    """None where it is cut off."""
    crossing = asyncio.ensure_future(work)
    limit = asyncio.ensure_future(clock.sleep(most_s))
    try:
        await asyncio.wait((crossing, limit), return_when=asyncio.FIRST_COMPLETED)
        return crossing.result() if crossing.done() else None
    finally:
        for task in (crossing, limit):
            task.cancel()
        await asyncio.gather(crossing, limit, return_exceptions=True)


async def _crossed(
    target: str, nbytes: int, link: EmulatedLink | None, forward: Greets, clock: Clock
) -> tuple[float, float]:
    """Seconds, and by how many the other end was late."""
    data = (os.urandom(_BLOCK) * (nbytes // _BLOCK + 1))[:nbytes]
    waited_s, seconds, late_s = 0.0, None, 0.0
    began = clock.now()
    if link is not None:
        waited_s = await link.carry(nbytes)
    async with aclosing(forward.greet(target, data)) as answers:
        async for answer in answers:
            seconds, late_s = clock.now() - began - waited_s, answer
    if seconds is None:
        raise StageLost(f"the stage {target!r} gave no answer to a probe", stage=target)
    return seconds, late_s
