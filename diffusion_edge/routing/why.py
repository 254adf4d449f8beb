"""Why a plan was chosen, and what would have to change for another one to come before it.

Plans are of a *kind* by the models and tiers of their spans, in order: `device then cloud`. Of
every kind but the chosen one's the best plan is told: the one that the policy would take if there
were no other kinds, or else the one that comes nearest to the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Literal

from diffusion_edge.plan import Plan, Tier
from diffusion_edge.routing import due
from diffusion_edge.routing.best import SLACK, Asked, Found
from diffusion_edge.routing.options import Options
from diffusion_edge.routing.search import search
from diffusion_edge.routing.shapes import Group, Shapes

KINDS = 48
"""That are looked at, those of fewer spans first: as many as three groups make, and some more."""

FAR = log(10)
"""No larger change is told: a tenth of a price, or ten times as much."""

TOLD = 12
"""Alternatives that are told, those that would need the smallest change first."""


@dataclass(frozen=True)
class Change:
    """What would have to be so, all else being as it is, for a kind to have a plan that comes
    before the chosen one: a deadline, a floor, a tier's price of a second, or the finish of its
    best plan. size: of the change, relative to what is; the smallest of one kind is told."""

    what: Literal["deadline_s", "quality_floor", "price_per_s", "predicted_s"]
    to: float
    size: float
    tier: Tier | None = None


@dataclass(frozen=True)
class Alternative:
    """The best plan of a kind. late_s: past the deadline; short: of the floor; dearer, slower_s:
    than the chosen one; 0 where it is not. change: None where no change of one thing is enough."""

    kind: str
    plan: Plan
    predicted_s: float
    cost: float
    price: float
    quality: float
    quality_bound: float
    late_s: float
    short: float
    dearer: float
    slower_s: float
    not_taken: str
    change: Change | None


@dataclass(frozen=True)
class Why:
    """kind: of the chosen plan. plans: how many reach the floor. left_out: kinds not told."""

    kind: str
    plans: int
    alternatives: tuple[Alternative, ...]
    left_out: int


def why(known: Options, late: Callable[[], Options] | None = None) -> Why | None:
    """known: what is compared. late: what is where nothing is in time, as with `elastic`, which
    else goes by price; None where all goes by finish, as with `earliest`. None where no plan
    reaches the floor."""
    if not known.count():
        return None
    if late is None:
        return _Explained(known, None, known.earliest()[0]).why()
    if in_time := known.cheapest():
        return _Explained(known, known, in_time[0], in_time=True).why()
    last = late()
    return _Explained(last, known, last.first()[0]).why()


class _Explained:
    """known: what `best` was chosen from. on_time: what is compared by price where something is in
    time, if anything is. in_time: whether `best` was taken for its price. Where it was, and where
    it makes nobody else late, others that do could not have been taken."""

    def __init__(
        self, known: Options, on_time: Options | None, best: Found, in_time: bool = False
    ) -> None:
        self._known, self._on_time, self._best, self._in_time = known, on_time, best, in_time
        self._price = known.charged_for(best)
        self._floor = known.request.quality_floor
        self._limit_s = known.within_s if in_time else inf
        self._barred = in_time or (on_time is not None and bool(known.earliest(barred=True)))

    def why(self) -> Why:
        own, *kinds = sorted(_kinds(self._known), key=lambda kind: kind[0] != self._own_kind())
        told = [self._alternative(*kind) for kind in kinds[:KINDS]]
        others = [each for each in told if each is not None]
        others.sort(key=lambda each: each.change.size if each.change else inf)
        left_out = len(others[TOLD:]) + len(kinds[KINDS:])
        return Why(own[0], self._known.count(), tuple(others[:TOLD]), left_out)

    def _own_kind(self) -> str:
        by_name = self._known.known.group_of()
        return _named([by_name[name] for name in self._best.stages])

    def _alternative(self, kind: str, every: Shapes) -> Alternative | None:
        good = every.above(self._floor - SLACK)
        could = self._could_be_taken(good)
        found = could or self._nearest(every, good)
        if found is None:
            return None
        price = self._known.charged_for(found)
        late_s = max(self._late_s(found.finish_s), 0.0)
        short = max(self._floor - found.bound, 0.0)
        dearer = max(price - self._price, 0.0)
        slower_s = max(found.finish_s - self._best.finish_s, 0.0)
        return Alternative(
            kind=kind,
            plan=found.plan(self._known.view),
            predicted_s=self._known.usual_s(found),
            cost=sum(self._known.paid_by_tier(found).values()),
            price=price,
            quality=found.quality,
            quality_bound=found.bound,
            late_s=late_s,
            short=short,
            dearer=dearer,
            slower_s=slower_s,
            not_taken=self._not_taken(could, late_s, short, dearer, slower_s),
            change=self._change(every, good, could, price),
        )

    def _could_be_taken(self, good: Shapes) -> Found | None:
        """What the policy would take if there were no other kinds; None if it would not."""
        by: Literal["price", "finish"] = "price" if self._in_time else "finish"
        found = self._search(good, Asked(by, finish_s=self._limit_s, barred=self._barred))
        return found[0] if found else None

    def _nearest(self, every: Shapes, good: Shapes) -> Found | None:
        """None where no links lead from stage to stage."""
        first, finest = Asked("finish"), Asked("bound", finish_s=self._limit_s)
        asked = (good, first), (every, finest), (every, first)
        return next((best[0] for of, wanted in asked if (best := self._search(of, wanted))), None)

    def _search(self, of: Shapes, asked: Asked) -> list[Found]:
        return search(of, self._known.known, asked)

    def _not_taken(
        self, could: Found | None, late_s: float, short: float, dearer: float, slower_s: float
    ) -> str:
        said = [f"below the floor by {short:.3g}"] * (short > 0)
        if could is None and not short and not (self._in_time and late_s):
            said.append("makes others late who were promised to be in time")
        if self._in_time:
            said += [f"too late by {late_s:.2f} s"] * (late_s > 0)
            said += [f"dearer by {dearer:.3g}"] * (dearer > 0)
        else:
            said += [f"done {slower_s:.2f} s later"] * (slower_s > 0)
        return ", ".join(said) or "as good, and it comes after it"

    def _late_s(self, finish_s: float) -> float:
        return due.late_s(finish_s, self._known.request, self._known.view)

    # ------------------------------------------------------------------ what would have to change

    def _change(
        self, every: Shapes, good: Shapes, could: Found | None, price: float
    ) -> Change | None:
        changes = [*self._floors(every), *self._deadlines(good)]
        if could is not None:
            if self._in_time:
                changes += self._prices(could, price)
            else:
                sooner = 1 - self._best.finish_s / could.finish_s
                changes.append(Change("predicted_s", self._best.finish_s, sooner))
        near = [change for change in changes if change.size <= FAR]
        return min(near, key=lambda change: change.size, default=None)

    def _floors(self, every: Shapes) -> Iterator[Change]:
        """The highest floor at which a plan of the kind comes before the chosen one."""
        asked = (
            Asked("bound", finish_s=self._limit_s, price=self._price - SLACK, barred=self._barred)
            if self._in_time
            else Asked("bound", finish_s=self._best.finish_s - SLACK, barred=self._barred)
        )
        for found in self._search(every, asked)[:1]:
            if 0 < found.bound < self._floor:
                yield Change("quality_floor", found.bound, 1 - found.bound / self._floor)

    def _deadlines(self, good: Shapes) -> Iterator[Change]:
        """The first deadline at which one above the floor is in time and of less price."""
        if self._on_time is None:
            return
        price = self._on_time.charged_for(self._best) - SLACK
        cheaper = Asked("finish", price=price, barred=True)
        for found in search(good, self._on_time.known, cheaper)[:1]:
            late_s = self._late_s(max(found.finish_s, self._best.finish_s))
            if late_s > 0:
                deadline_s = self._known.request.deadline_s
                yield Change("deadline_s", deadline_s + late_s, late_s / deadline_s)

    def _prices(self, found: Found, price: float) -> Iterator[Change]:
        """At which both would be of one price."""
        one, best = self._known.paid_by_tier(found), self._known.paid_by_tier(self._best)
        for tier, now in self._known.view.price_per_s.items():
            more = one.get(tier, 0.0) - best.get(tier, 0.0)
            factor = 1 - (price - self._price) / more if more else 0.0
            if factor > 0 and now > 0:
                yield Change("price_per_s", factor * now, abs(log(factor)), tier)


def _kinds(known: Options) -> list[tuple[str, Shapes]]:
    """All kinds, those of fewer spans first."""
    groups = known.known.layout.groups
    return [(_named([groups[g] for g in order]), of) for order, of in known.every().kinds]


def _named(groups: Sequence[Group]) -> str:
    labels = [g.tier if g.model == g.tier else f"{g.model} on {g.tier}" for g in groups]
    return f"{labels[0]} alone" if len(labels) == 1 else " then ".join(labels)
