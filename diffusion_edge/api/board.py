"""The ingress' view of all stages, kept fresh by asking each several times a second.

Between two reports the view has what was decided meanwhile (`promises`) beside what was reported.
Times of what a stage holds count from its report, and the view says how old that is: so the record
of a stage stays the same object until there is a report or a promise more or less, and what is
computed of it can be kept (`finish`), while the stage's work since its report still counts. What a
stage will do with what it has moves promises to the stages after it. The
board's clock for this goes by ticks, whose differences have no rounding: requests that are decided
one after another within a tick are due in that order, not in that of the last bit of a sum.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import floor

from diffusion_edge.api.carriage import Carriage
from diffusion_edge.api.links import Links, Pair
from diffusion_edge.api.promises import Kept, Promises, merged, promised
from diffusion_edge.plan import Tier
from diffusion_edge.request import ImageRequest
from diffusion_edge.view import Carried, Choice, Link, StageStatus, View

log = logging.getLogger(__name__)

FRESH_S = 1.0
EVERY_S = 0.2
GIVE_UP_S = 5.0
TICK_S = 1 / 16
"""A power of two. Shorter ones make tables more often, longer ones know ages less well."""
SETTLING = 2
"""Rounds in which what one stage foretells moves what is promised to others."""


@dataclass(frozen=True)
class _Seen:
    """at_s: the tick in which it came."""

    status: StageStatus
    good_until: float
    at_s: float


@dataclass(frozen=True)
class _Merged:
    """A report, known by identity, and the promises that were merged into it, by their version."""

    seen: _Seen
    version: int
    status: StageStatus


class Board:
    """Polls every stage; one that is silent for `FRESH_S` longer than its last answer took is not
    in the view. So one that hangs leaves it soon, and one that always takes its time stays.

    ask: by stage, a call that returns its status. links: by (from, to), what is stated of every
    pair that can hand off; measure_links: whether hops overrule that. carriage: how a request's
    packet is carried. Call `start` in the loop that shall poll.
    """

    def __init__(
        self,
        ask: Mapping[str, Callable[[], Awaitable[StageStatus]]],
        links: Mapping[Pair, Link | None],
        price_per_s: Mapping[Tier, float],
        carriage: Callable[[ImageRequest], Carriage],
        now: Callable[[], float] = time.monotonic,
        measure_links: bool = True,
    ) -> None:
        self._ask = ask
        self.links = Links(links, now, measure_links)
        self._price_per_s = dict(price_per_s)
        self._carriage = carriage
        self._now = now
        self._seen: dict[str, _Seen] = {}
        self._merged: dict[str, _Merged] = {}
        self._promises = Promises()
        self._tasks: list[asyncio.Task[None]] = []
        self._views = itertools.count()

    def view(self, request: ImageRequest) -> View:
        """What is known now, for this request."""
        stages = self.statuses()
        links = {pair: self.links.link(pair) for pair in self._open(stages)}
        carried = self._carriage(request)
        others = [steps for steps in request.free_steps if steps != request.steps]
        return View(
            stages=stages,
            links=links,
            price_per_s=self._price_per_s,
            packet_bytes=carried.packet_bytes,
            codecs=carried.codecs,
            cells=carried.cells,
            turn=next(self._views),
            age_s={name: self._tick_s() - self._seen[name].at_s for name in stages},
            carried={steps: self._carried(request.in_steps(steps)) for steps in others},
        )

    def _carried(self, request: ImageRequest) -> Carried:
        found = self._carriage(request)
        return Carried(found.packet_bytes, found.codecs)

    def open_pairs(self) -> list[Pair]:
        """Those that can hand off now."""
        return self._open(self.statuses())

    def _open(self, stages: Mapping[str, StageStatus]) -> list[Pair]:
        return [
            (source, target)
            for source, target in self.links.pairs
            if source in stages and target in stages and stages[source].can_reach(target)
        ]

    def statuses(self) -> dict[str, StageStatus]:
        """The live stages, in the order of the config, with what is promised to them."""
        now = self._now()
        live = [n for n in self._ask if n in self._seen and self._seen[n].good_until >= now]
        for _ in range(SETTLING):
            for name in live:
                self._status(name)
        return {name: self._status(name) for name in live}

    def promised(
        self, request: ImageRequest, choice: Choice, view: View
    ) -> AbstractContextManager[Kept]:
        """What was decided from `view` counts at once, until the block is left at the latest."""
        return self._promises.kept(promised(request, choice, view, self._tick_s()))

    def _status(self, name: str) -> StageStatus:
        seen, version = self._seen[name], self._promises.version(name)
        known = self._merged.get(name)
        if known is None or known.seen is not seen or known.version != version:
            told, listed = self._promises.of(name), self._promises.listed(name)
            status = merged(seen.status, told, seen.at_s, listed)
            known = self._merged[name] = _Merged(seen, version, status)
            self._promises.foretold(status, seen.at_s)
        return known.status

    def _tick_s(self) -> float:
        return floor(self._now() / TICK_S) * TICK_S

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._follow(name)) for name in self._ask]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, name: str) -> None:
        while True:
            await self.ask_once(name)
            await asyncio.sleep(EVERY_S)

    async def ask_once(self, name: str) -> None:
        """One poll; a stage that fails to answer leaves the view at once."""
        asked = self._now()
        try:
            async with asyncio.timeout(GIVE_UP_S):
                status = await self._ask[name]()
        except TimeoutError:
            return
        except Exception as error:
            if self._seen.pop(name, None):
                log.warning("the stage %s does not answer: %s", name, type(error).__name__)
            return
        answered = self._now()
        good_until = answered + FRESH_S + (answered - asked)
        self._seen[name] = _Seen(status, good_until, self._tick_s())
        self._promises.reported(name, status.held)
