"""Why a plan was chosen, and what would have to change for another one to come before it.

Plans are of a *kind* by the models and tiers of their spans, in order: `device then cloud`. Of
every kind but the chosen one's the best plan is told: the one that the policy would take if there
were no other kinds, or else the one that comes nearest to the floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Literal

from diffusion_edge.plan import Plan, Tier
from diffusion_edge.routing.options import Options
from diffusion_edge.routing.search import SLACK, Asked, Found, search
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


def why(known: Options, *, by_price: bool) -> Why | None:
    """by_price: whether what is in time goes by price, as with `elastic`, or all by finish, as with
    `earliest`. None where no plan reaches the floor."""
    return _Explained(known, by_price).why() if known.count() else None


class _Explained:
    """in_time: whether the chosen plan was taken for its price."""

    def __init__(self, known: Options, by_price: bool) -> None:
        in_time = known.cheapest() if by_price else []
        self._known, self._by_price, self._in_time = known, by_price, bool(in_time)
        self._best = (in_time or known.earliest())[0]
        self._price = known.charged_for(self._best)
        self._floor, self._deadline_s = known.request.quality_floor, known.request.deadline_s

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
        good = every.only(every.bound >= self._floor - SLACK)
        found = self._best_of(every, good)
        if found is None:
            return None
        price = self._known.charged_for(found)
        late_s = max(found.finish_s - self._deadline_s, 0.0)
        short = max(self._floor - found.bound, 0.0)
        dearer = max(price - self._price, 0.0)
        slower_s = max(found.finish_s - self._best.finish_s, 0.0)
        return Alternative(
            kind=kind,
            plan=found.plan(self._known.view),
            predicted_s=found.finish_s,
            cost=sum(self._known.paid_by_tier(found).values()),
            price=price,
            quality=found.quality,
            quality_bound=found.bound,
            late_s=late_s,
            short=short,
            dearer=dearer,
            slower_s=slower_s,
            not_taken=self._not_taken(late_s, short, dearer, slower_s),
            change=self._change(every, good, found, price),
        )

    def _best_of(self, every: Shapes, good: Shapes) -> Found | None:
        """None where no links lead from stage to stage."""
        by_price, first = Asked("price", finish_s=self._deadline_s, barred=True), Asked("finish")
        finest = Asked("bound", finish_s=self._deadline_s if self._in_time else inf)
        asked = [(good, first), (every, finest), (every, first)]
        if self._by_price:
            asked.insert(0, (good, by_price))
        return next((best[0] for of, wanted in asked if (best := self._search(of, wanted))), None)

    def _search(self, of: Shapes, asked: Asked) -> list[Found]:
        return search(of, self._known.known, asked)

    def _not_taken(self, late_s: float, short: float, dearer: float, slower_s: float) -> str:
        said = [f"below the floor by {short:.3g}"] * (short > 0)
        if self._in_time:
            said += [f"too late by {late_s:.2f} s"] * (late_s > 0)
            said += [f"dearer by {dearer:.3g}"] * (dearer > 0)
        else:
            said += [f"done {slower_s:.2f} s later"] * (slower_s > 0)
        return ", ".join(said) or "as good, and it comes after it"

    # ------------------------------------------------------------------ what would have to change

    def _change(self, every: Shapes, good: Shapes, found: Found, price: float) -> Change | None:
        changes = [*self._floors(every), *self._deadlines(good)]
        if found.bound >= self._floor - SLACK:
            if self._in_time and found.finish_s <= self._deadline_s:
                changes += self._prices(found, price)
            if not self._in_time:
                sooner = 1 - self._best.finish_s / found.finish_s
                changes.append(Change("predicted_s", self._best.finish_s, sooner))
        near = [change for change in changes if change.size <= FAR]
        return min(near, key=lambda change: change.size, default=None)

    def _floors(self, every: Shapes) -> Iterator[Change]:
        """The highest floor at which a plan of the kind comes before the chosen one."""
        below_s = self._best.finish_s - SLACK
        asked = (
            Asked("bound", finish_s=self._deadline_s, price=self._price - SLACK)
            if self._in_time
            else Asked("bound", finish_s=below_s)
        )
        for found in self._search(every, asked)[:1]:
            if 0 < found.bound < self._floor:
                yield Change("quality_floor", found.bound, 1 - found.bound / self._floor)

    def _deadlines(self, good: Shapes) -> Iterator[Change]:
        """The first deadline at which one above the floor is in time and of less price."""
        if self._by_price:
            for found in self._search(good, Asked("finish", price=self._price - SLACK))[:1]:
                at_s = max(found.finish_s, self._best.finish_s)
                if at_s > self._deadline_s:
                    yield Change("deadline_s", at_s, at_s / self._deadline_s - 1)

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
    groups = known.known.groups
    return [(_named([groups[g] for g in order]), of) for order, of in known.every().kinds()]


def _named(groups: Sequence[Group]) -> str:
    labels = [g.tier if g.model == g.tier else f"{g.model} on {g.tier}" for g in groups]
    return f"{labels[0]} alone" if len(labels) == 1 else " then ".join(labels)
