"""Calls for several at once: what waits while one is made goes into the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from diffusion_edge.engine.pace import Clock, Pace

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Made(Generic[Result]):
    """What came of an item, in a call between `began` and `ended` on the clock."""

    result: Result
    began: float
    ended: float
    slept_s: float
    overruns: int

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    asked_at: float
    made: asyncio.Future[Made[Result]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Together(Generic[Item, Result]):
    """Makes a result of each item, in calls for several.

    call: results in the items' order. turn: held during a call; what shares it takes turns.
    most: how many of those that wait, in order of arrival, go into the next call. pace, stated_s:
    for emulation, the device's pace and the seconds that a call for these items shall take.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        clock: Clock,
        turn: asyncio.Lock,
        *,
        most: Callable[[Sequence[Item]], int],
        pace: Pace,
        stated_s: Callable[[Sequence[Item]], float | None],
    ) -> None:
        self._call = call
        self._clock = clock
        self._turn = turn
        self._most = most
        self._stated_s = stated_s
        self._waiting: list[_Waiting[Item, Result]] = []
        self._loop: asyncio.Task[None] | None = None
        self._pace = pace

    async def make(self, item: Item) -> Made[Result]:
        """Raises what the call raises for this item alone; cancelling this takes it out."""
        entry: _Waiting[Item, Result] = _Waiting(item, self._clock.now())
        self._waiting.append(entry)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())
        return await entry.made

    async def _run(self) -> None:
        while self._waiting:
            async with self._turn:
                waiting = [entry for entry in self._waiting if not entry.made.done()]
                count = self._most([entry.item for entry in waiting]) if waiting else 0
                self._waiting = waiting[count:]
                if count:
                    await self._make(waiting[:count])

    async def _make(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        """In one call; if it fails, each alone, so that only what fails by itself is lost."""
        began, slept_s, overruns = self._clock.now(), self._pace.slept_s, self._pace.overruns
        items, asked_at = [entry.item for entry in batch], batch[0].asked_at
        work, stated_s = self._call(items), self._stated_s(items)
        try:
            results = await (
                work if stated_s is None else self._pace.keep(stated_s, asked_at, work)
            )
        except Exception as error:
            if len(batch) > 1:
                for entry in batch:
                    await self._make([entry])
            elif not batch[0].made.done():
                batch[0].made.set_exception(error)
            return
        ended = self._clock.now()
        slept_s, overruns = self._pace.slept_s - slept_s, self._pace.overruns - overruns
        for entry, result in zip(batch, results, strict=True):
            if not entry.made.done():
                entry.made.set_result(Made(result, began, ended, slept_s, overruns))
