"""The best plan over all stages, found without looking at every plan.

Three spans over 24 stages in 50 steps make 14.3 million plans, of some 30,000 shapes (`shapes`), of
which those above the floor are known beforehand. Of each shape two things are told by a look at
groups of stages: the least that its plans could cost, and the earliest that its last span but one
could be done; by when that has to be done is known, too (`ways`). These are bounds, since the
cheapest stage need not be the fastest. Shapes that cannot be in time, or cannot be better than the
best plan known, are dropped. Of the others all choices of stages are worked out span by span, the
most promising first, and dropped by the same bounds on what is to come. Plans of few spans come
first: they are few, and the best of them is nearly as good as the best of all.

What is left in the end is exact, ties included: a bound as good as the best plan drops nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import NamedTuple

import numpy as np

from diffusion_edge.routing.best import SLACK, Asked, Best, Found, Told
from diffusion_edge.routing.cost import Bools, Counts, Floats
from diffusion_edge.routing.leaving import Moments, each, through
from diffusion_edge.routing.shapes import DIGITS, Block, Shapes
from diffusion_edge.routing.stations import Allows, Stations
from diffusion_edge.routing.ways import Middle

NOW = np.zeros((1, 1))

Due = Callable[[float], Moments]
"""When something has to be, for plans to be done by some time."""

FEW, MORE = 64, 8
"""So many are worked out at first, and so many times as many next, before the rest of them is asked
again whether it can be of use."""


def search(shapes: Shapes, known: Stations, asked: Asked) -> list[Found]:
    """The best plan, and the best one over other stages or another order of them; fewer where there
    are none. Ties go to fewer hops, then to the stages that come first by name and the earlier
    hand-offs. Who says no is asked at first of what is found without asking: mostly nobody does.
    """
    asked = asked.rounded()
    if asked.barred and known.allows is not None:
        found = best_of(shapes, known, replace(asked, barred=False))
        if all(_is_taken(each, known, known.allows) for each in found):
            return found
    return best_of(shapes, known, asked)


def best_of(shapes: Shapes, known: Stations, asked: Asked) -> list[Found]:
    """The same; who says no is asked of all."""
    best = Best(asked.second)
    for block in shapes.blocks:
        Search(block, known, asked, best).run()
    return best.found()


def _is_taken(plan: Found, known: Stations, allows: Allows) -> bool:
    """Whether all stages of a plan take it."""
    came_s = np.zeros(1), np.zeros(1)
    spans = [
        (np.array([known.layout.names.index(name)]), np.array([steps]))
        for name, steps in zip(plan.stages, plan.steps, strict=True)
    ]
    done = np.zeros(1, np.int64)
    for k, (stage, steps) in enumerate(spans):
        if k:
            came_s = _after(came_s, known.ways.hop_s(spans[k - 1][0], stage, done))
        if not allows(stage, came_s[0], steps).all():
            return False
        came_s = through(known.ways.going, k, stage, came_s, steps)
        done = done + steps
    return True


ALL = 8192
"""Plans, or about as many, that are all worked out at once."""


class Some(NamedTuple):
    """Shapes, or plans as far as they are chosen. at: (1 + 3 K, n), the shape, and of each of K
    spans its group, steps and stage. price: (n, 1), of the whole, at least. left_s: (n, 1), when
    the last stage but one is left, at the earliest."""

    at: Counts
    price: Floats
    left_s: Moments

    @property
    def shape(self) -> Counts:
        return self.at[0, :, None]

    def group(self, k: int) -> Counts:
        return self.at[1 + 3 * k, :, None]

    def steps(self, k: int) -> Counts:
        return self.at[2 + 3 * k, :, None]

    def stage(self, k: int) -> Counts:
        return self.at[3 + 3 * k, :, None]

    def handoff(self, k: int) -> Counts:
        """Before the k-th span."""
        return self.steps(0) if k == 1 else self.steps(0) + self.steps(1)

    def only(self, kept: Bools | Counts | slice) -> Some:
        return Some(self.at[:, kept], self.price[kept], each(self.left_s, lambda s: s[kept]))


class Search:
    """One among plans of so many spans. last: the index of the last one. Choices of a stage are
    tables: a row for each of some, a column for each stage of the group, filled up with -1."""

    def __init__(self, block: Block, known: Stations, asked: Asked, best: Best) -> None:
        self._block, self._known, self._asked, self._best = block, known, asked, best
        self._ways, self._prices, self._last = known.ways, known.prices, block.spans - 1
        self._bound = block.bound

    def run(self) -> None:
        if self._last == 0:
            self._alone()
            return
        price, shape = self._affordable_shapes()
        if len(shape) * self._known.layout.members.shape[1] ** self._block.spans <= ALL:
            self._all(price, shape)
            return
        some, late_s = self._shapes(price, shape)
        if self._last == 1:
            self._in_turn(some, late_s, self._late_of)
        elif len(some.price):
            middle = Middle(self._ways, *self._affordable(some))
            self._in_turn(*self._second(some, middle), partial(self._late, middle))

    def _in_turn(self, left: Some, late_s: Floats, late: Callable[[Some], Floats]) -> None:
        """All plans of some, the most promising first, by a guess. late: by what they are late."""
        first, then = self._asked.ordered(left.price, late_s, self._bound[left.shape])
        left, few = left.only(np.lexsort((then[:, 0], first[:, 0]))), FEW
        while len(left.price):
            some, left = left.only(slice(few)), left.only(slice(few, None))
            self._end(self._not_late(self._first(some), late))
            left = self._not_late(left.only((left.price <= self._most())[:, 0]), late)
            few *= MORE

    def _not_late(self, some: Some, late: Callable[[Some], Floats]) -> Some:
        if not len(some.price):
            return some
        return some.only(self._useful(some.shape, some.price, late(some))[:, 0])

    # ------------------------------------------------------------------ what is of use

    def _most(self) -> float:
        """The highest price that is of use."""
        most = self._asked.price
        return SLACK + (min(most, self._best.first) if self._asked.by == "price" else most)

    def _until_s(self) -> float:
        """The latest finish that is of use."""
        until_s = self._asked.finish_s
        return SLACK + (min(until_s, self._best.first) if self._asked.by == "finish" else until_s)

    def _useful(self, shape: Counts, price: Floats, late_s: Floats) -> Bools:
        useful: Bools = (price <= self._most()) & (late_s <= SLACK)
        if self._asked.by == "bound":
            useful &= ~self._best.worse(-self._bound[shape], price)
        return useful

    def _late_s(self, price: Floats, at_s: Moments, due: Due) -> Floats:
        """By how much plans are late at some moment. What is as dear as the best plan has to be
        done before it."""
        late_s, dear = _less(at_s, due(self._until_s())), self._best.first
        if self._asked.by == "price" and dear < inf:
            equal = np.abs(price - dear) <= SLACK
            if equal.any():
                late_s = np.where(equal, _less(at_s, due(self._best.then + SLACK)), late_s)
        return late_s

    # ------------------------------------------------------------------ shapes

    def _alone(self) -> None:
        """All plans of one span."""
        of, shape = self._known.layout.of, np.full(len(self._known.layout.groups), -1)
        shape[self._block.groups[0]] = np.arange(self._block.groups.shape[1])
        stage = np.flatnonzero(shape[of] >= 0)
        steps = np.full(len(stage), self._prices.ending.shape[1])
        finish_s = self._ways.ending.last.now[stage, -1]
        if self._asked.barred and self._known.allows is not None:
            allowed = self._known.allows(stage, np.zeros(len(stage)), steps)
            finish_s = np.where(allowed, finish_s, inf)
        self._add(np.stack([shape[of[stage]], of[stage], steps, stage]), finish_s)

    def _affordable_shapes(self) -> tuple[Floats, Counts]:
        """The least prices of those that are not too dear, and which these are."""
        *begin, end = self._block.slot
        price = self._prices.least_ending.take(end)
        for slot in begin:
            price += self._prices.least_going.take(slot)
        shape = np.flatnonzero(price <= self._most())
        return price[shape], shape

    def _all(self, price: Floats, shape: Counts) -> None:
        """All plans of some shapes: few are worked out sooner than bounds are told."""
        never = np.zeros((len(shape), 1))
        some = Some(self._block.at[:, shape], price[:, None], (never, never))
        if self._last == 2:
            some = self._over(some, 1)
        self._end(self._first(some))

    def _shapes(self, price: Floats, shape: Counts) -> tuple[Some, Floats]:
        """Those that may be of use, by what groups of stages tell, and by what they are late."""
        left_s = self._soonest_s(shape)
        late_s = self._late_s(price, left_s, partial(self._due_s, self._block.ends.which[shape]))
        useful = self._useful(shape, price, late_s)
        left_s = each(left_s, lambda s: s[useful, None])
        some = Some(self._block.at[:, shape[useful]], price[useful, None], left_s)
        return some, late_s[useful, None]

    def _soonest_s(self, shape: Counts) -> Moments:
        """When the last group but one could be left, of some shapes: once for each beginning, where
        these are fewer."""
        groups, steps, which = self._block.begins
        if len(shape) < groups.shape[1]:
            begins = which[shape]
            return self._left_at(groups[:, begins], steps[:, begins])
        return each(self._left_at(groups, steps), lambda s: s[which[shape]])

    def _left_at(self, groups: Counts, steps: Counts) -> Moments:
        left_s = self._ways.left_of(groups[0], steps[0])
        if self._last == 1:
            return left_s
        came_s = _after(left_s, self._ways.hop_of(groups[0], groups[1], steps[0]))
        return through(self._ways.soonest, 1, groups[1], came_s, steps[1])

    def _due_s(self, end: Counts, until_s: float) -> Moments:
        """When it has to be, of some of `Block.ends`."""
        (before, last), (steps,), _ = self._block.ends
        return each(self._ways.due_of(before, last, steps, until_s), lambda s: s[end])

    def _late_of(self, some: Some) -> Floats:
        due = partial(self._due_s, self._block.ends.which[some.shape])
        return self._late_s(some.price, some.left_s, due)

    # ------------------------------------------------------------------ choices of stages

    def _over(self, some: Some, k: int) -> Some:
        """With each stage for the k-th span that is not too dear."""
        more = self._prices.more_ending if k == self._last else self._prices.more_going
        stage = self._known.layout.members[some.at[1 + 3 * k]]
        price = some.price + more[stage, some.steps(k) - 1]
        fine = (price <= self._most()) & (stage >= 0)
        row = np.nonzero(fine)[0]
        at = some.at[:, row]
        at[3 + 3 * k] = stage[fine]
        return Some(at, price[fine][:, None], each(some.left_s, lambda s: s[row]))

    def _affordable(self, some: Some) -> tuple[Bools, Bools]:
        """Stages and steps, of those that go on and those that end, that are not too dear whatever
        the other spans cost."""
        spare = self._most() - some.price.min()
        return self._prices.more_going <= spare, self._prices.more_ending <= spare

    def _second(self, some: Some, middle: Middle) -> tuple[Some, Floats]:
        """The second of three spans, after the earliest first one, and by what they are late."""
        some = self._over(some, 1)
        came_s = middle.came(some.group(0), some.stage(1), some.steps(0))
        left_s = through(self._ways.going, 1, some.stage(1), came_s, some.steps(1))
        some = Some(some.at, some.price, left_s)
        late_s = self._late(middle, some)
        useful = self._useful(some.shape, some.price, late_s)[:, 0]
        return some.only(useful), late_s[useful]

    def _late(self, middle: Middle, some: Some) -> Floats:
        """Of choices for the second of three spans."""
        due = partial(middle.due, some.stage(1), some.group(2), some.handoff(2))
        return self._late_s(some.price, some.left_s, due)

    def _first(self, some: Some) -> Some:
        some = self._over(some, 0)
        stage, steps = some.stage(0), some.steps(0)
        left_s = self._if_allowed(stage, NOW, steps, self._ways.left(stage, steps))
        if self._last == 2:
            left_s = self._through(some, 1, self._hop(some, 1, left_s))
        return Some(some.at, some.price, left_s)

    def _end(self, some: Some) -> None:
        """The last span, and what is then known of whole plans."""
        some, k = self._over(some, self._last), self._last
        came_s, stage, steps = self._hop(some, k, some.left_s), some.stage(k), some.steps(k)
        late_s = self._late_s(some.price, came_s, partial(self._ways.latest, stage, steps))
        useful = self._useful(some.shape, some.price, late_s)
        if k == 2:
            useful &= stage != some.stage(0)
        if useful.any():
            some = Some(some.at, some.price, came_s).only(useful[:, 0])
            _, finish_s = self._through(some, k, some.left_s)
            self._add(some.at, finish_s[:, 0])

    def _hop(self, some: Some, k: int, left_s: Moments) -> Moments:
        hop_s = self._ways.hop_s(some.stage(k - 1), some.stage(k), some.handoff(k))
        return _after(left_s, hop_s)

    def _through(self, some: Some, k: int, came_s: Moments) -> Moments:
        read, stage, steps = self._ways.going, some.stage(k), some.steps(k)
        if k == self._last:
            read = self._ways.ending
        done_s = through(read, k, stage, came_s, steps)
        return self._if_allowed(stage, came_s[0], steps, done_s)

    def _if_allowed(self, stage: Counts, came_s: Floats, steps: Counts, done_s: Moments) -> Moments:
        if not self._asked.barred or self._known.allows is None:
            return done_s
        allowed = self._known.allows(stage, came_s, steps)
        return each(done_s, lambda s: np.where(allowed, s, inf))

    # ------------------------------------------------------------------ plans

    def _add(self, at: Counts, finish_s: Floats) -> None:
        """Plans as in `Some.at`."""
        asked, stages, steps = self._asked, at[3::3], at[2::3]
        price = self._prices.ending[stages[-1], steps[-1] - 1]
        for stage, count in zip(stages[:-1], steps[:-1], strict=True):
            price += self._prices.going[stage, count - 1]
        price, finish_s = price.round(DIGITS), finish_s.round(DIGITS)
        first, then = asked.ordered(price, finish_s, self._bound[at[0]])
        good = (finish_s <= asked.finish_s) & (finish_s < inf) & (price <= asked.price)
        left = np.flatnonzero(good & ~self._best.worse(first, then))
        for _ in range(2 if asked.second else 1):
            if len(left):
                i = self._least(left, first, then, stages, steps)
                found = self._found(at[:, i].tolist(), float(price[i]), float(finish_s[i]))
                ranks = tuple(self._known.layout.rank[stages[:, i]].tolist())
                order = float(first[i]), float(then[i]), len(steps), ranks, found.steps
                self._best.add(Told(*order, found))
                left = left[(stages[:, left] != stages[:, i, None]).any(axis=0)]

    def _least(
        self, among: Counts, first: Floats, then: Floats, stages: Counts, steps: Counts
    ) -> int:
        """The best plan of some. Names and hand-offs count where all else is equal."""
        for key in (first, then):
            among = _with_least(key[among], among)
        if len(among) > 1:
            for key in (*self._known.layout.rank[stages], *steps):
                among = _with_least(key[among], among)
        return int(among[0])

    def _found(self, at: list[int], price: float, finish_s: float) -> Found:
        return Found(
            stages=tuple(self._known.layout.names[stage] for stage in at[3::3]),
            steps=tuple(at[2::3]),
            finish_s=finish_s,
            price=price,
            quality=float(self._block.quality[at[0]]),
            bound=float(self._bound[at[0]]),
        )


def _after(moments: Moments, seconds: Floats) -> Moments:
    return each(moments, lambda s: s + seconds)


def _less(moments: Moments, than: Moments) -> Floats:
    """The more of both."""
    less: Floats = moments[0] - than[0]
    return less if moments[1] is moments[0] else np.maximum(less, moments[1] - than[1])


def _with_least(keys: Floats | Counts, of: Counts) -> Counts:
    kept: Counts = of[keys == keys.min()] if len(of) > 1 else of
    return kept
