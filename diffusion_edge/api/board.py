"""The ingress' board, kept fresh by asking every stage several times a second."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from diffusion_edge.plan import Tier
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import board
from diffusion_edge.routing.board import EVERY_S, FRESH_S, Carriage
from diffusion_edge.routing.links.taken import Pair
from diffusion_edge.view import Link, StageStatus

log = logging.getLogger(__name__)

GIVE_UP_S = 5.0


class Board(board.Board):
    """Polls every stage; one that is silent for `FRESH_S` longer than its last answer took is not
    in the view. So one that hangs leaves it soon, and one that always takes its time stays.

    ask: by stage, a call that returns its status; the others as in `routing.board`. Call `start` in
    the loop that shall poll.
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
        super().__init__(tuple(ask), links, price_per_s, carriage, now, measure_links)
        self._ask = ask
        self._tasks: list[asyncio.Task[None]] = []

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
            if self.lost(name):
                log.warning("the stage %s does not answer: %s", name, type(error).__name__)
            return
        self.heard(name, status, FRESH_S + (self._now() - asked))
