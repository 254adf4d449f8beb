"""A probe: bytes that mean nothing go to another stage the way of a packet, and are timed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from diffusion_edge.engine.link import EmulatedLink
from diffusion_edge.engine.pace import Clock
from diffusion_edge.errors import StageLost

LONGEST_S = 4.0
"""A probe is cut off then, so that packets behind it do not wait for what nobody needs."""
_BLOCK = 2**16  # random ones, so that nothing on the way makes them fewer


class Greets(Protocol):
    """How bytes that mean nothing reach a stage: the way of `Transport.run`. It answers once."""

    def greet(self, stage: str, data: bytes) -> AsyncGenerator[None, None]: ...


async def probed(
    target: str, nbytes: int, link: EmulatedLink | None, forward: Greets, clock: Clock
) -> float | None:
    """Seconds until the stage `target` had so many bytes, over the emulated link if there is one.

    None where that link is in use: packets tell what it takes. A probe that is cut off is told as
    LONGEST_S, less than it would have taken, and the next one will be the smaller. Raises StageLost
    and what `forward` raises.
    """
    if link is not None and link.in_use:
        return None
    crossing = asyncio.ensure_future(_crossed(target, nbytes, link, forward, clock))
    limit = asyncio.ensure_future(clock.sleep(LONGEST_S))
    try:
        await asyncio.wait((crossing, limit), return_when=asyncio.FIRST_COMPLETED)
        return crossing.result() if crossing.done() else LONGEST_S
    finally:
        for task in (crossing, limit):
            task.cancel()
        await asyncio.gather(crossing, limit, return_exceptions=True)


async def _crossed(
    target: str, nbytes: int, link: EmulatedLink | None, forward: Greets, clock: Clock
) -> float:
    data = (os.urandom(_BLOCK) * (nbytes // _BLOCK + 1))[:nbytes]
    waited_s, seconds = 0.0, None
    began = clock.now()
    if link is not None:
        waited_s = await link.carry(nbytes)
    async with aclosing(forward.greet(target, data)) as answers:
        async for _ in answers:
            seconds = clock.now() - began - waited_s
    if seconds is None:
        raise StageLost(f"the stage {target!r} gave no answer to a probe", stage=target)
    return seconds
