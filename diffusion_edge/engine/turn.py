"""Whose turn it is on a stage: forward passes and calls for texts and pictures have one device.

Beside each other on the same cores they take longer. Who waits longest is next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from diffusion_edge.view import Work


@dataclass(frozen=True)
class Doing:
    """A pass or call that runs: what is in it, and when it is expected to end, on the clock."""

    work: Work
    items: Sequence[object]
    ends_at: float


class Turns:
    """One at a time. doing: what runs now; waiting: who waits for it to end, in order."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self.doing: Doing | None = None
        self.waiting: list[Work] = []

    async def take(self, work: Work) -> None:
        self.waiting.append(work)
        try:
            await self._lock.acquire()
        finally:
            self.waiting.remove(work)

    def leave(self) -> None:
        self.doing = None
        self._lock.release()


class Seat:
    """The turn as one kind of work takes it: held inside `async with`."""

    def __init__(self, turns: Turns, work: Work) -> None:
        self._turns = turns
        self._work: Work = work

    def does(self, items: Sequence[object], ends_at: float) -> None:
        """To be told of each pass or call in the turn."""
        self._turns.doing = Doing(self._work, items, ends_at)

    async def __aenter__(self) -> None:
        await self._turns.take(self._work)

    async def __aexit__(self, *_: object) -> None:
        self._turns.leave()
