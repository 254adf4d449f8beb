"""When latents leave many stages at once, by their arrival and steps: exactly, and at the earliest.

`Leaving` is many tables of `finish` in one, `Soonest` bounds what tables of groups of stages say
from below. Both are read by `at`, and `through` takes the images of a request through a span by
either.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from diffusion_edge.routing.cost import Counts, Floats

Moments = tuple[Floats, Floats]
"""Of the first and of the last image; one array twice where they are the same."""


class Read(Protocol):
    def at(self, where: Counts, arrives_s: Floats, steps: Counts) -> Floats:
        """By latent, seconds from now. Not before it arrives; infinite where it never does."""
        ...


Kind = TypeVar("Kind", bound="Read", covariant=True)


class Reads(NamedTuple, Generic[Kind]):
    """Of one kind. last: when the last image of a request leaves, by when the first one came. Of
    several images also first: when the first one does, and alone: when one does that comes alone.
    """

    last: Kind
    first: Kind | None = None
    alone: Kind | None = None


def through(read: Reads[Read], k: int, where: Counts, came_s: Moments, steps: Counts) -> Moments:
    """When the first and the last image leave the k-th span, by when they came: as `finish.predict`
    has it."""
    first_s, last_s = came_s
    done_s = read.last.at(where, first_s, steps)
    if read.first is None or read.alone is None:
        return done_s, done_s
    if k:
        done_s = np.maximum(done_s, read.alone.at(where, last_s, steps))
    return read.first.at(where, first_s, steps), done_s


def each(moments: Moments, made: Callable[[Floats], Floats]) -> Moments:
    first_s, last_s = moments
    of_first = made(first_s)
    return of_first, of_first if last_s is first_s else made(last_s)


class Knots:
    """Arrivals of tables: arrives_s is (S, A), by stage."""

    def __init__(self, arrives_s: Floats) -> None:
        self.stages, self.count = arrives_s.shape
        self.arrives_s, self.known = arrives_s, arrives_s.ravel()
        self._end_s = float(arrives_s[:, -1].max())
        self._apart = 2 * self._end_s
        stage = np.arange(self.stages)[:, None]
        self.begin = stage * self.count
        self._sorted = (arrives_s + stage * self._apart).ravel()

    def above(self, where: Counts, arrives_s: Floats) -> tuple[Counts, Floats]:
        """The knot above, of the first ones the second and of those after the last one that, and
        the share of the way to it from the one below."""
        begin = where * self.count
        above = self._sorted.searchsorted(np.minimum(arrives_s, self._end_s) + where * self._apart)
        above = np.minimum(np.maximum(above, begin + 1), begin + (self.count - 1))
        below_s = self.known[above - 1]
        return above, (arrives_s - below_s) / (self.known[above] - below_s)


class Leaving:
    """leaves_s: (S, A, N). As `Table.seconds`: on the line between two arrivals, and on that of the
    last two after them."""

    def __init__(self, knots: Knots, leaves_s: Floats) -> None:
        self._knots, self._leaves_s = knots, leaves_s
        self._flat, self._steps = leaves_s.ravel(), leaves_s.shape[2]

    @property
    def now(self) -> Floats:
        """Of what arrives now: (S, N)."""
        leaves_s: Floats = self._leaves_s[:, 0]
        return leaves_s

    def stays_s(self) -> Floats:
        """The least seconds from arrival to leaving: (S, N)."""
        stays_s: Floats = (self._leaves_s - self._knots.arrives_s[:, :, None]).min(axis=1)
        return stays_s

    def at(self, where: Counts, arrives_s: Floats, steps: Counts) -> Floats:
        above, share = self._knots.above(where, arrives_s)
        entry = above * self._steps + (steps - 1)
        read: Floats = self._flat[entry - self._steps]
        read += share * (self._flat[entry] - read)
        return read

    def latest(self, until_s: float) -> Floats:
        """The latest arrival of what leaves by then; -inf where nothing does: (S, N)."""
        reached = np.count_nonzero(self._leaves_s <= until_s, axis=1)
        never, knots = reached == 0, self._knots
        above = knots.begin + np.minimum(np.maximum(reached, 1), knots.count - 1)
        entry = above * self._steps + np.arange(self._steps)
        low_s, below_s = self._flat[entry - self._steps], knots.known[above - 1]
        rise_s = self._flat[entry] - low_s
        rise_s[never] = 1.0
        latest_s: Floats = below_s + (until_s - low_s) * (knots.known[above] - below_s) / rise_s
        latest_s[never] = -inf
        return latest_s


class Soonest:
    """Of groups of stages: not before the earliest of what arrives now leaves one of them, and not
    before the least stay has passed. (G, N) both."""

    def __init__(self, now: Floats, stays_s: Floats) -> None:
        self._steps, self._now, self._stays_s = now.shape[1], now.ravel(), stays_s.ravel()

    def at(self, where: Counts, arrives_s: Floats, steps: Counts) -> Floats:
        entry = where * self._steps + (steps - 1)
        soonest: Floats = np.maximum(self._now[entry], arrives_s + self._stays_s[entry])
        return soonest
