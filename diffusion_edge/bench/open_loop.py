"""Open-loop load: requests are sent when they are due, whether or not earlier ones are answered.

So a slow server shows as latency and not as a lower rate. A latency counts from the time a request
was due. No torch.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from diffusion_edge import arrivals

Send = Callable[[int], Awaitable[bool]]
"""Sends request number i and waits for its answer; whether it was the picture."""


@dataclass(frozen=True)
class Sent:
    """One request: when it was due and how long its answer took from then on, in seconds."""

    due_s: float
    latency_s: float
    ok: bool


def poisson(rate: float, seconds: float, rng: random.Random) -> list[float]:
    """Times in [0, seconds) of a Poisson process of `rate` a second."""
    return list(takewhile(lambda at: at < seconds, arrivals.poisson(rate, rng)))


def bursty(rate: float, seconds: float, rng: random.Random, burst: int) -> list[float]:
    """Bursts of `burst` requests at once; the bursts are Poisson, the mean rate is `rate`."""
    return list(takewhile(lambda at: at < seconds, arrivals.bursty(rate, burst, rng)))


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of the values do not exceed.

    None without values, and where they are too few for a tail: above a half, a quantile that no
    value exceeds would only be the largest by another name.
    """
    rank = math.ceil(share * len(values))
    if not values or (share > 0.5 and rank == len(values)):
        return None
    return sorted(values)[max(0, rank - 1)]


async def drive(send: Send, due: Sequence[float]) -> list[Sent]:
    """Sends request i `due[i]` seconds from now on; returns when all are answered."""
    start = time.monotonic()

    async def one(number: int, due_s: float) -> Sent:
        await asyncio.sleep(max(0.0, start + due_s - time.monotonic()))
        ok = await send(number)
        return Sent(due_s, time.monotonic() - start - due_s, ok)

    return list(await asyncio.gather(*(one(i, due_s) for i, due_s in enumerate(due))))


@dataclass(frozen=True)
class Bisection:
    """A search between `low` and `high` for the highest rate that holds; the middle is taken by
    ratio.

    holds: the highest rate that was seen to hold, None where none was. fails: the lowest that was
    seen not to.
    """

    low: float
    high: float
    holds: float | None = None
    fails: float | None = None

    @property
    def rate(self) -> float:
        """The next to try."""
        low = self.low if self.holds is None else self.holds
        high = self.high if self.fails is None else self.fails
        return math.sqrt(low * high)

    def after(self, holds: bool) -> Bisection:
        """With what a probe at `rate` showed."""
        return replace(self, holds=self.rate) if holds else replace(self, fails=self.rate)
