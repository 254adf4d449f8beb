"""The sending side of a hand-off: it must be accepted in time, and it may be slowed down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from diffusion_edge.errors import StageLost
from diffusion_edge.request import Event, Transport


class Guarded:
    """A transport that gives up on a stage which does not accept a packet in time.

    Without it a packet for a stage with no live replica would wait for ever. Raises StageLost.
    """

    def __init__(self, transport: Transport, accept_timeout_s: float) -> None:
        self._transport = transport
        self._accept_timeout_s = accept_timeout_s

    async def run(self, stage: str, packet: bytes) -> AsyncGenerator[Event, None]:
        async with aclosing(as_generator(self._transport.run(stage, packet))) as events:
            try:
                async with asyncio.timeout(self._accept_timeout_s):
                    first = await anext(events)
            except TimeoutError:
                raise StageLost(
                    f"the stage {stage!r} did not accept the request within "
                    f"{self._accept_timeout_s:g} s",
                    stage=stage,
                ) from None
            except StopAsyncIteration:
                raise StageLost(f"the stage {stage!r} gave no answer", stage=stage) from None
            yield first
            async for event in events:
                yield event


async def as_generator(events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
    """The same events as a generator, so that closing it closes what it wraps."""
    try:
        async for event in events:
            yield event
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
