"""The ingress' view of all stages, kept fresh by asking each several times a second."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from diffusion_edge.api.carriage import Carriage
from diffusion_edge.types import ImageRequest, Link, StageStatus, Tier, View

log = logging.getLogger(__name__)

FRESH_S = 1.0
EVERY_S = 0.2
GIVE_UP_S = 5.0


@dataclass(frozen=True)
class _Seen:
    status: StageStatus
    good_until: float


class Board:
    """Polls every stage; one that is silent for `FRESH_S` longer than its last answer took is not
    in the view. So one that hangs leaves it soon, and one that always takes its time stays.

    ask: by stage, a call that returns its status. carriage: how a request's packet is carried.
    Call `start` in the loop that shall poll.
    """

    def __init__(
        self,
        ask: Mapping[str, Callable[[], Awaitable[StageStatus]]],
        links: Mapping[tuple[str, str], Link],
        price_per_s: Mapping[Tier, float],
        carriage: Callable[[ImageRequest], Carriage],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._links = dict(links)
        self._price_per_s = dict(price_per_s)
        self._carriage = carriage
        self._now = now
        self._seen: dict[str, _Seen] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._views = itertools.count()

    def view(self, request: ImageRequest) -> View:
        """What is known now, for this request."""
        stages = self.statuses()
        links = {
            (source, target): link
            for (source, target), link in self._links.items()
            if source in stages and target in stages and stages[source].can_reach(target)
        }
        carried = self._carriage(request)
        return View(
            stages=stages,
            links=links,
            price_per_s=self._price_per_s,
            packet_bytes=carried.packet_bytes,
            codecs=carried.codecs,
            cells=carried.cells,
            turn=next(self._views),
        )

    def statuses(self) -> dict[str, StageStatus]:
        """The live stages, in the order of the config."""
        now = self._now()
        seen = {name: self._seen[name] for name in self._ask if name in self._seen}
        return {name: entry.status for name, entry in seen.items() if entry.good_until >= now}

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
        self._seen[name] = _Seen(status, answered + FRESH_S + (answered - asked))
