"""Calls for several at once: what waits while one is made goes into the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from diffusion_edge.engine.line import Line, apart
from diffusion_edge.engine.pace import Clock, Pace
from diffusion_edge.engine.turn import Seat

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
class Asked(Generic[Item, Result]):
    """An item in the line, and what will be made of it."""

    item: Item
    asked_at: float
    answer: asyncio.Future[Made[Result]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Together(Generic[Item, Result]):
    """Makes a result of each item, in calls for several.

    call: results in the items' order. turn: held during a call; what shares it takes turns.
    most: how many of those that wait, in order of arrival, go into the next call. pace: the
    device's. seconds: that a call for these items is known to take, or shall take.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        clock: Clock,
        turn: Seat,
        *,
        most: Callable[[Sequence[Item]], int],
        pace: Pace,
        seconds: Callable[[Sequence[Item]], float],
    ) -> None:
        self._call = call
        self._clock = clock
        self._most = most
        self._seconds = seconds
        self._pace = pace
        self._turn = turn
        self.line: Line[Asked[Item, Result]] = Line(self._next, turn)

    async def make(self, item: Item) -> Made[Result]:
        """Raises what the call raises for this item alone; cancelling this takes it out."""
        return await self.ask(item).answer

    def ask(self, item: Item) -> Asked[Item, Result]:
        """For who does not wait at once; cancelling the answer takes the item out."""
        asked: Asked[Item, Result] = Asked(item, self._clock.now())
        self.line.enter(asked)
        return asked

    async def _next(self, waiting: Sequence[Asked[Item, Result]]) -> None:
        """One call; if it fails, one for each half, so that only what fails by itself is lost."""
        if waiting:
            await apart(self._make, waiting[: self._most([entry.item for entry in waiting])])

    async def _make(self, batch: Sequence[Asked[Item, Result]]) -> None:
        began, slept_s, overruns = self._clock.now(), self._pace.slept_s, self._pace.overruns
        items, asked_at = [entry.item for entry in batch], batch[0].asked_at
        work, seconds = self._call(items), self._seconds(items)
        self._turn.does(items, self._pace.ends_at(seconds, asked_at))
        results = await self._pace.keep(seconds, asked_at, work)
        ended = self._clock.now()
        slept_s, overruns = self._pace.slept_s - slept_s, self._pace.overruns - overruns
        for entry, result in zip(batch, results, strict=True):
            if not entry.answer.done():
                entry.answer.set_result(Made(result, began, ended, slept_s, overruns))
