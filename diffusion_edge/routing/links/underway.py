"""Hops that are under way: a packet that has left and not come says by now that its link is slow.

How long a hop took is known when it has ended, which on a link that has collapsed is too late for
all that are sent after it. That it takes at least so long is known all the time: until it ends, its
link is taken for no faster than if it ended now.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from diffusion_edge.view import Link

Pair = tuple[str, str]


@dataclass(frozen=True)
class _Hop:
    pair: Pair
    nbytes: int
    left: float


class Underway:
    """By whoever sent them, a key of theirs."""

    def __init__(self) -> None:
        self._hops: dict[Hashable, _Hop] = {}
        self._first: dict[Pair, dict[Hashable, _Hop]] = {}

    def left(self, key: Hashable, pair: Pair, nbytes: int, now: float) -> None:
        """A packet has left."""
        self.came(key)
        hop = self._hops[key] = _Hop(pair, nbytes, now)
        self._first.setdefault(pair, {})[key] = hop

    def came(self, key: Hashable) -> None:
        """It has come, or never will; one that did not leave is passed over."""
        if hop := self._hops.pop(key, None):
            del self._first[hop.pair][key]

    def link(self, pair: Pair, known: Link, now: float) -> Link:
        """What the link is taken for, knowing that. The first of several tells: they pass one after
        another."""
        if not (hops := self._first.get(pair)):
            return known
        first = next(iter(hops.values()))
        passed_s = now - first.left - known.delay_s
        if passed_s * known.bytes_per_s <= first.nbytes:
            return known
        return replace(known, bytes_per_s=first.nbytes / passed_s)
