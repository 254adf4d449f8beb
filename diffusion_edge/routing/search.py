"""The best plan over all stages, found without looking at every plan.

Three spans over 24 stages in 50 steps make 14.3 million plans, of some 30,000 shapes (`shapes`), of
which those above the floor are known beforehand. Of each shape two things are told by a look at
groups of stages: the least that its plans could cost, and the earliest that one could be done. Both
are bounds, since the cheapest stage need not be the fastest. Shapes that cannot be in time, or
cannot be better than the best plan known, are dropped. Of the others, the most promising first, all
choices of stages are worked out span by span, and dropped by the same bounds on what is to come.
What is left in the end is exact, ties included: a bound as good as the best plan drops nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple

import numpy as np

from diffusion_edge.plan import Plan
from diffusion_edge.routing.cost import Bools, Counts, Floats, Line
from diffusion_edge.routing.leaving import Moments, coarse, later, soonest, through
from diffusion_edge.routing.shapes import DIGITS, SPANS, Shapes, Spans, of_places
from diffusion_edge.routing.stations import Stations
from diffusion_edge.view import View

SLACK = 2 * 10.0**-DIGITS
"""Bounds and what they bound are sums in different orders."""

CHUNK, FEW = 256, 8
"""So many shapes are looked at closely at once, and so many of these are worked out before the rest
of them is asked again whether it can be of use."""

PROBES = 128
"""Shapes that are tried on one choice of stages each, for a first plan to be better than."""


@dataclass(frozen=True)
class Found:
    """A plan; quality and bound as `Shapes` has them."""

    stages: tuple[str, ...]
    steps: tuple[int, ...]
    finish_s: float
    price: float
    quality: float
    bound: float

    def plan(self, view: View, reason: str = "") -> Plan:
        """In the view's codecs."""
        found = Plan.of(tuple(zip(self.stages, self.steps, strict=True)), reason)
        return found.with_codecs(view.codecs)

    def of(self, lines: Mapping[str, Line]) -> Iterator[tuple[str, float]]:
        """What each stage takes of something."""
        for k, (name, steps) in enumerate(zip(self.stages, self.steps, strict=True), 1):
            line = lines[name]
            yield name, line.start + steps * line.step + (line.end if k == len(self.steps) else 0)


@dataclass(frozen=True)
class Asked:
    """Which plan is best: that of least `price`, the one with the earliest `finish`, or the one
    with the highest `bound` of its quality; of equal ones the earliest finish, or else the least
    price. finish_s, price: what it may take at most. barred: whether a stage may say no
    (`Stations.allows`)."""

    by: Literal["price", "finish", "bound"]
    finish_s: float = inf
    price: float = inf
    barred: bool = False


def search(shapes: Shapes, known: Stations, asked: Asked) -> list[Found]:
    """The best plan, and the best one over other stages or another order of them; fewer where there
    are none. Ties go to fewer hops, then to the stages that come first by name and the earlier
    hand-offs."""
    return Search(shapes, known, asked).best() if len(shapes) else []


class Best:
    """The best plan so far and the best over other stages or another order of them. first, then:
    what the second one has, of the two things that plans are ordered by."""

    def __init__(self) -> None:
        self.plans: list[tuple[tuple[float, ...], tuple[int, ...], int]] = []
        self.first = self.then = inf

    def worse(self, first: Floats, then: Floats) -> Bools:
        """Whether what has such bounds is worse than both."""
        worse: Bools = first > self.first + SLACK
        if self.first < inf:
            worse |= (first > self.first - SLACK) & (then > self.then + SLACK)
        return worse

    def add(self, keys: Sequence[Floats | Counts], taken: Sequence[Counts], shape: Counts) -> None:
        """keys: what plans are ordered by, by plan. taken: stations, by span."""
        left = np.arange(len(shape))
        for _ in range(2):
            if len(left):
                best = _least(keys, left)
                told = tuple(float(key[best]) for key in keys)
                stations = tuple(int(station[best]) for station in taken)
                self.plans.append((told, stations, int(shape[best])))
                other = [station[left] != station[best] for station in taken]
                left = left[np.logical_or.reduce(other)]
        self.plans.sort()
        others = [plan for plan in self.plans if plan[1] != self.plans[0][1]]
        self.plans = self.plans[:1] + others[:1]
        if len(self.plans) == 2:
            self.first, self.then = self.plans[1][0][:2]


def _here_and_there(count: int) -> Counts:
    """The first few, and further ones at growing distances."""
    far = FEW * 2 ** np.arange(int(np.log2(count / FEW)) + 1)
    return np.concatenate([np.arange(FEW), far[far < count]])


def _least(keys: Sequence[Floats | Counts], among: Counts) -> int:
    for key in keys:
        if len(among) > 1:
            values = key[among]
            among = among[values == values.min()]
    return int(among[0])


class Bounds(NamedTuple):
    """Of shapes: of the two things that plans are ordered by."""

    shape: Counts
    first: Floats
    then: Floats

    def only(self, kept: Counts | Bools | slice) -> Bounds:
        return Bounds(self.shape[kept], self.first[kept], self.then[kept])

    def by_promise(self) -> Bounds:
        """The least first: only a guess, so nearly equal ones may change places."""
        spread = float(np.ptp(self.first)) if len(self.first) else 0.0
        order = self.then
        if spread > 0:
            share = 1e-6 * spread / max(float(self.then.max()), 1e-300)
            order = self.first + share * self.then
        return self.only(order.argsort())


class Tries:
    """Latents on their way. shape: by latent. taken: the stations so far, by span and latent.
    price: of these. moments: when the first and the last image leave there."""

    __slots__ = ("moments", "price", "shape", "taken")

    def __init__(self, shape: Counts) -> None:
        nothing = np.zeros(len(shape))
        self.shape, self.price = shape, nothing
        self.moments = nothing, nothing
        self.taken: list[Counts] = []

    def only(self, kept: Counts | Bools) -> Tries:
        few = Tries.__new__(Tries)
        few.shape, few.price = self.shape[kept], self.price[kept]
        few.taken = [station[kept] for station in self.taken]
        first_s, last_s = self.moments
        kept_s = first_s[kept]
        few.moments = kept_s, kept_s if last_s is first_s else last_s[kept]
        return few


class Search:
    """One search."""

    def __init__(self, shapes: Shapes, known: Stations, asked: Asked) -> None:
        self._shapes, self._known, self._asked = shapes, known, asked
        self._best = Best()

    def best(self) -> list[Found]:
        self._probe()
        self._look_ahead()
        left = self._promising()
        if len(left.shape) > CHUNK:
            self._try(left.only(_here_and_there(len(left.shape))))
        while len((left := self._still(left)).shape):
            self._try(left.only(slice(CHUNK)))
            left = left.only(slice(CHUNK, None))
        return [self._found(*plan) for plan in self._best.plans]

    def _try(self, some: Bounds) -> None:
        near = self._closer(some)
        if len(near.shape):
            self._work_out(near.shape[:FEW])
        rest = self._still(near.only(slice(FEW, None))).shape
        if len(rest):
            self._work_out(rest)

    def _still(self, some: Bounds) -> Bounds:
        """Those that may yet be of use."""
        return some.only(~self._best.worse(some.first, some.then))

    # ------------------------------------------------------------------ a first plan

    def _probe(self) -> None:
        """Some shapes, each on the stages that look best."""
        known, shapes = self._known, self._shapes
        half = shapes.total // 2
        soon_s = known.leaving.last.leaves_s[:, 0, half]
        by_finish = self._asked.by == "finish"
        looks = soon_s if by_finish else known.price.reshape(-1, shapes.total)[:, half]
        looks = np.where(known.stage <= len(known.names), looks, inf)
        by_looks = looks[known.members].argsort(axis=1, kind="stable")
        ranked = np.take_along_axis(known.members, by_looks, axis=1)
        shape = np.arange(0, len(shapes), -(-len(shapes) // PROBES))
        groups = [of_places(shapes.groups)[span.place[shape]] for span in shapes.spans]
        tries = Tries(shape)
        for k, span in enumerate(shapes.spans):
            used = np.sum([group == groups[k] for group in groups[:k]], axis=0, dtype=np.int64)
            used = np.where(groups[k] == shapes.groups, 0, used)
            tries.taken.append(ranked[span.place[shape], used])
            self._go(tries, k)
        self._add(tries)

    # ------------------------------------------------------------------ bounds

    def _look_ahead(self) -> None:
        until_s = self._asked.finish_s
        if self._asked.by == "finish":
            until_s = min(until_s, self._best.first)
        elif not self._best.plans:
            until_s *= 2  # nothing may be in time, and then this serves the next search, too
        if until_s == inf:
            until_s = float(self._known.leaving.last.leaves_s.max())
        self._earliest = self._known.earliest(until_s)
        self._coarse = coarse(self._earliest)

    def _promising(self) -> Bounds:
        """Shapes that may be of use, the best promise first."""
        known, (*begin, end) = self._known, self._shapes.tree
        price, moments = np.zeros(1), (np.zeros(1),) * 2
        for k, span in enumerate(begin):
            price = price[span.parent] + known.least_price[span.slot]
            moments = self._onward(k, span, moments)
        price = price[end.parent]
        price += known.least_price[end.slot]
        shape = np.arange(len(price))
        if self._most() < inf:
            shape = np.flatnonzero(price <= self._most() + SLACK)
            end, price = end.only(shape), price[shape]
        _, last_s = self._onward(SPANS - 1, end, moments)
        tries = Tries(shape[self._useful(shape, price, last_s)])
        price, last_s = self._to_come(tries, 0)
        return self._bounds(tries.shape, price, last_s)

    def _bounds(self, shape: Counts, price: Floats, finish_s: Floats) -> Bounds:
        """Of those that may be of use."""
        useful = self._useful(shape, price, finish_s)
        shape = shape[useful]
        return Bounds(shape, *self._ordered(shape, price[useful], finish_s[useful])).by_promise()

    def _most(self) -> float:
        """The highest price that is of use."""
        by_price = self._asked.by == "price"
        return min(self._asked.price, self._best.first) if by_price else self._asked.price

    def _onward(self, k: int, span: Spans, moments: Moments) -> Moments:
        first_s, last_s = moments
        came_s = first_s[span.parent]
        moments = came_s, came_s if last_s is first_s else last_s[span.parent]
        if k:
            moments = later(moments, self._known.least_s[span.way])
        return through(self._coarse, k, span.place, moments, span.steps)

    def _to_come(self, tries: Tries, k: int) -> tuple[Floats, Floats]:
        """The least price and the earliest finish of what goes on with its k-th span."""
        price, moments = tries.price, tries.moments
        for j, span in enumerate(self._shapes.spans[k:], k):
            price = price + self._known.least_price[span.slot[tries.shape]]
            if j:
                moments = later(moments, self._known.least_s[span.way[tries.shape]])
            place, steps = span.place[tries.shape], span.steps[tries.shape]
            moments = through(self._earliest, j, place, moments, steps)
        return price, moments[1]

    def _closer(self, some: Bounds) -> Bounds:
        """What the ways over single stages tell of shapes, the best promise first. A stage that is
        too dear whatever the others cost is no way."""
        known, shape, source = self._known, some.shape, np.zeros((len(some.shape), 1), np.int64)
        slots = [span.slot[shape] for span in self._shapes.spans]
        price = np.sum([known.least_price[slot] for slot in slots], axis=0)
        spare = (self._most() - price + SLACK)[:, None]
        moments = (np.zeros(source.shape),) * 2
        for k, span in enumerate(self._shapes.spans):
            station, steps = known.members[span.place[shape]], span.steps[shape, None]
            between = source[:, :, None], station[:, None, :], span.handoff[shape, None, None]
            hop_s = known.hop_s(*between) if k else np.zeros((1, 1, station.shape[1]))
            moments = soonest(moments, hop_s)
            more = known.price[station * self._shapes.total + (steps - 1)]
            more -= known.least_price[slots[k]][:, None]
            moments = later(moments, np.where(more > spare, inf, 0.0))
            moments = through(known.leaving, k, station, moments, steps)
            source = station
        return self._bounds(shape, price, moments[1].min(axis=1))

    def _useful(self, shape: Counts, price: Floats, finish_s: Floats) -> Bools:
        """Whether what has such bounds may be better than what is known."""
        asked = self._asked
        useful: Bools = (finish_s <= asked.finish_s + SLACK) & (finish_s < inf)
        if asked.price < inf:
            useful &= price <= asked.price + SLACK
        return useful & ~self._best.worse(*self._ordered(shape, price, finish_s))

    def _ordered(self, shape: Counts, price: Floats, finish_s: Floats) -> tuple[Floats, Floats]:
        if self._asked.by == "price":
            return price, finish_s
        if self._asked.by == "finish":
            return finish_s, price
        return -self._shapes.bound[shape], price

    # ------------------------------------------------------------------ plans

    def _work_out(self, shape: Counts) -> None:
        known = self._known
        tries = Tries(shape)
        for k, span in enumerate(self._shapes.spans):
            members = known.members[span.place[tries.shape]]
            which, column = np.nonzero(members != known.none)
            station = members[which, column]
            for before in tries.taken:
                stage = known.stage[station]
                free = (known.stage[before[which]] != stage) | (station == known.nobody)
                which, station = which[free], station[free]
            tries = tries.only(which)
            tries.taken.append(station)
            self._go(tries, k)
            tries = tries.only(self._useful(tries.shape, *self._to_come(tries, k + 1)))
        self._add(tries)

    def _go(self, tries: Tries, k: int) -> None:
        """Through the k-th span, on the station that was taken last."""
        known, span, station = self._known, self._shapes.spans[k], tries.taken[k]
        steps = span.steps[tries.shape]
        tries.price = tries.price + known.price[station * self._shapes.total + (steps - 1)]
        if k:
            hop_s = known.hop_s(tries.taken[k - 1], station, span.handoff[tries.shape])
            tries.moments = later(tries.moments, hop_s)
        came_s, _ = tries.moments
        tries.moments = through(known.leaving, k, station, tries.moments, steps)
        if self._asked.barred and known.allows is not None:
            allowed = known.allows(known.stage[station], came_s, steps)
            tries.moments = later(tries.moments, np.where(allowed, 0.0, inf))

    def _add(self, tries: Tries) -> None:
        price, finish_s = tries.price.round(DIGITS), tries.moments[1].round(DIGITS)
        ok = self._useful(tries.shape, price, finish_s)
        ok &= finish_s <= round(self._asked.finish_s, DIGITS)
        ok &= price <= round(self._asked.price, DIGITS)
        if not ok.any():
            return
        shape, taken = tries.shape[ok], [station[ok] for station in tries.taken]
        hops = np.zeros(len(shape), np.int64)
        for station in taken:
            hops += station != self._known.nobody
        keys: list[Floats | Counts] = [
            *self._ordered(shape, price[ok], finish_s[ok]),
            hops,
            *(self._known.rank[station] for station in taken),
            *(span.steps[shape] for span in self._shapes.spans),
            price[ok],
            finish_s[ok],
        ]
        self._best.add(keys, taken, shape)

    def _found(self, keys: tuple[float, ...], taken: tuple[int, ...], shape: int) -> Found:
        known = self._known
        *_, price, finish_s = keys
        real = [k for k, station in enumerate(taken) if station != known.nobody]
        return Found(
            stages=tuple(known.names[known.stage[taken[k]]] for k in real),
            steps=tuple(int(self._shapes.spans[k].steps[shape]) for k in real),
            finish_s=finish_s,
            price=price,
            quality=float(self._shapes.quality[shape]),
            bound=float(self._shapes.bound[shape]),
        )
