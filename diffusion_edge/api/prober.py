"""Keeps links measured that no picture crosses: a quiet one is probed now and then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from diffusion_edge.routing.links.probes import PAUSE_S
from diffusion_edge.routing.links.taken import Links, Pair

log = logging.getLogger(__name__)

GIVE_UP_S = 10.0

# (source, target, bytes) -> seconds, or None where the link was in use
Probe = Callable[[str, str, int], Awaitable[float | None]]


class Prober:
    """Asks stages to send probes, each stage for one at a time, so never for two over one link.

    open_pairs: those that can hand off now. Call `start` in the loop that shall do it.
    """

    def __init__(
        self, links: Links, open_pairs: Callable[[], Iterable[Pair]], probe: Probe
    ) -> None:
        self._links = links
        self._open_pairs = open_pairs
        self._probe = probe
        self._failing: set[Pair] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        sources = dict.fromkeys(source for source, _ in self._links.pairs)
        self._tasks = [asyncio.create_task(self._follow(source)) for source in sources]

    async def stop(self) -> None:
        """Also what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, source: str) -> None:
        while True:
            await self.look(source)
            await asyncio.sleep(PAUSE_S)

    async def look(self, source: str) -> None:
        """Probes the link from a stage that has been quiet for longest, if it is to be probed."""
        due = self._links.due([pair for pair in self._open_pairs() if pair[0] == source])
        if due is None:
            return
        pair, nbytes = due
        try:
            async with asyncio.timeout(GIVE_UP_S):
                seconds = await self._probe(*pair, nbytes)
        except Exception as error:  # whatever a transport raises
            self._failed(pair, error)
            return
        self._failing.discard(pair)
        if seconds is not None:
            self._links.probed(pair, nbytes, seconds)

    def _failed(self, pair: Pair, error: Exception) -> None:
        """Logged once, until a probe succeeds again."""
        if pair not in self._failing:
            self._failing.add(pair)
            log.warning("the link %s-%s was not probed: %s", *pair, error or type(error).__name__)
