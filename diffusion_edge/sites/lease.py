"""Work does not outlive its caller: who sent a packet on says again and again that it still waits.

    caller: renewing.hold(stage) -> a lease, renewed every RENEW_S for as long as the block lasts
    stage:  leases.held(lease, events) -> the events, closed after SILENCE of the stage's own ticks
            without a word

A killed process says nothing more, so what it had asked for ends within RENEW_S * (SILENCE + 1)
seconds, and in turn what had been handed on for it. The stage counts ticks of its own loop, not
seconds: one that was held up finds the words of its callers waiting before it counts on, and no
clocks are compared. One word a stage renews all that a caller has there.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from diffusion_edge.engine.hop import as_generator
from diffusion_edge.errors import StageLost
from diffusion_edge.request import Event

log = logging.getLogger(__name__)

RENEW_S = 1.0
SILENCE = 5

Sleep = Callable[[float], Awaitable[None]]
Renew = Callable[[Sequence[str]], Awaitable[None]]


# ---------------------------------------------------------------------------- the stage's side


@dataclass(eq=False)
class _Work:
    """What runs for a caller, and for how many ticks that has been silent."""

    task: asyncio.Task[None]
    silent: int = 0

    @property
    def forsaken(self) -> bool:
        return self.silent > SILENCE


class Leases:
    """What a stage does for others, and whether they still wait for it."""

    def __init__(self, stage: str, sleep: Sleep = asyncio.sleep) -> None:
        self._stage = stage
        self._sleep = sleep
        self._works: dict[str, _Work] = {}
        self._ticking: asyncio.Task[None] | None = None

    async def held(self, lease: str, events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
        """The events, read ahead; closing the iterator, or silence of the caller, closes them.

        Raises StageLost after silence.
        """
        ready: asyncio.Queue[Event | None] = asyncio.Queue()
        work = _Work(asyncio.create_task(_read(events, ready)))
        work.task.add_done_callback(lambda _: ready.put_nowait(None))
        self._works[lease] = work
        self._tick_on()
        try:
            while (event := await ready.get()) is not None:
                yield event
            if work.forsaken:
                raise self._gave_up()
            await work.task
        finally:
            del self._works[lease]
            work.task.cancel()
            await asyncio.gather(work.task, return_exceptions=True)

    def renew(self, leases: Iterable[str]) -> None:
        """The word of a caller that it still waits; what is over already is passed over."""
        for lease in leases:
            if lease in self._works:
                self._works[lease].silent = 0

    def _tick_on(self) -> None:
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while self._works:
            await self._sleep(RENEW_S)
            for work in list(self._works.values()):
                work.silent += 1
                if work.forsaken:
                    work.task.cancel()

    def _gave_up(self) -> StageLost:
        return StageLost(
            f"the stage {self._stage!r} gave the work up: whoever asked for it has been silent for "
            f"{SILENCE * RENEW_S:g} s",
            stage=self._stage,
        )


async def _read(events: AsyncIterator[Event], ready: asyncio.Queue[Event | None]) -> None:
    async with aclosing(as_generator(events)) as read:
        async for event in read:
            ready.put_nowait(event)


# ---------------------------------------------------------------------------- the caller's side


class Renewing:
    """What a caller waits for, by stage. `renew`: by stage, how it is told which leases go on."""

    def __init__(self, renew: Mapping[str, Renew], sleep: Sleep = asyncio.sleep) -> None:
        self._renew = renew
        self._sleep = sleep
        self._held: dict[str, set[str]] = {stage: set() for stage in renew}
        self._telling: dict[str, asyncio.Task[None]] = {}

    @contextmanager
    def hold(self, stage: str) -> Iterator[str]:
        """A new lease on the stage, renewed inside."""
        lease, held = uuid.uuid4().hex, self._held[stage]
        held.add(lease)
        if len(held) == 1:
            self._telling[stage] = asyncio.create_task(self._tell(stage))
        try:
            yield lease
        finally:
            held.remove(lease)
            if not held:
                self._telling.pop(stage).cancel()

    async def _tell(self, stage: str) -> None:
        """Never gives up: that the stage is lost is for the stream of its events to say."""
        while True:
            await self._sleep(RENEW_S)
            try:
                async with asyncio.timeout(SILENCE * RENEW_S):
                    await self._renew[stage](tuple(self._held[stage]))
            except Exception as error:  # whatever a transport raises
                log.debug("the stage %s was not told: %s", stage, type(error).__name__)
