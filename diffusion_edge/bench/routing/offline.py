"""How many requests that come in one instant could be in time: a search that has all the time it
wants, over plans for all of them at once. No torch.

It is no oracle: what it finds is possible by the stages' rules, and something better may be. Plans
of one search pass the stages in one order, so that each stage can be played to its end before the
next; all orders are tried. Links are taken to be free whenever a packet comes.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from diffusion_edge.bench.routing.live import Wanted
from diffusion_edge.plan import Plan, Span
from diffusion_edge.routing.forecast import ahead
from diffusion_edge.view import Held, StageStatus, View

Known = dict[Hashable, Sequence[float]]
"""When stages, which are alike if their models and tiers are, are done with what they hold."""

TRIED = 40
"""Plans that are tried for each request more, drawn anew each time."""
ROUNDS = 100
"""How often some requests are taken out and others put in."""
OUT = 3
"""Requests that are taken out at most."""


@dataclass(frozen=True)
class Played:
    """Plans that begin together: when each is done, and when each stage is."""

    done_s: tuple[float, ...]
    idle_s: Mapping[str, float]

    def crowding(self) -> float:
        """Of two ways to have as many in time the smaller leaves more for others."""
        return sum(seconds**2 for seconds in self.idle_s.values())


def most_in_time(
    count: int, plans: Sequence[Plan], wanted: Wanted, view: View, seed: int = 0
) -> int:
    """Of `count` requests at once, how many this search gets in time over some of these plans."""
    found = 0
    for order in permutations(view.stages):
        along = [plan for plan in plans if _passes(plan, order)]
        if along:
            found = max(found, len(_search(count, along, order, wanted, view, seed)))
    return found


def _passes(plan: Plan, order: Sequence[str]) -> bool:
    places = [order.index(span.stage) for span in plan.spans]
    return places == sorted(places)


def _search(
    count: int,
    plans: Sequence[Plan],
    order: Sequence[str],
    wanted: Wanted,
    view: View,
    seed: int,
) -> list[Plan]:
    """As many as it can; then again and again without some of them, and kept if no worse."""
    rng = random.Random(seed)
    best = _filled([], count, plans, order, wanted, view, rng)
    for _ in range(ROUNDS):
        if len(best) >= count:
            break
        left = rng.sample(best, max(len(best) - rng.randint(1, OUT), 0))
        other = _filled(left, count, plans, order, wanted, view, rng)
        best = max(best, other, key=lambda chosen: (len(chosen), chosen is other))
    return best


def _filled(
    chosen: Sequence[Plan],
    count: int,
    plans: Sequence[Plan],
    order: Sequence[str],
    wanted: Wanted,
    view: View,
    rng: random.Random,
) -> list[Plan]:
    """With one more at a time, each by the plan that leaves most, while all are in time."""
    filled = list(chosen)
    while len(filled) < count:
        tried = rng.sample(list(plans), min(TRIED, len(plans)))
        fitting = list(_fitting(filled, tried, order, wanted, view))
        if not fitting:
            break
        filled.append(min(fitting, key=lambda each: each[0])[1])
    return filled


def _fitting(
    chosen: Sequence[Plan], tried: Sequence[Plan], order: Sequence[str], wanted: Wanted, view: View
) -> Iterator[tuple[float, Plan]]:
    for plan in tried:
        found = played([*chosen, plan], order, wanted, view)
        if max(found.done_s) <= wanted.deadline_s:
            yield found.crowding(), plan


def played(
    plans: Sequence[Plan],
    order: Sequence[str],
    wanted: Wanted,
    view: View,
    known: Known | None = None,
) -> Played:
    """All at once over idle stages, played in this order; again and again, where plans do not all
    pass them in it, until nobody comes at another time. Nobody's future changes his past, so that
    ends. known: of stages that were played before, with what came of that."""
    known = {} if known is None else known
    comes_s = {(i, s.start): 0.0 for i, plan in enumerate(plans) for s in plan.spans}
    here = {
        stage: [(i, s) for i, plan in enumerate(plans) for s in plan.spans if s.stage == stage]
        for stage in order
    }
    done_s = [0.0] * len(plans)
    idle_s = dict.fromkeys(order, 0.0)
    settled = False
    while not settled:
        settled = True
        for stage in order:
            held = [
                _held(0, span, plans[i], comes_s[i, span.start], wanted, view)
                for i, span in here[stage]
            ]
            done = _known(known, view.stages[stage], held)
            for (i, span), seconds in zip(here[stage], done, strict=True):
                if span.stop == plans[i].stop:
                    done_s[i] = seconds
                elif (then_s := seconds + _travel_s(span, plans[i], view)) != comes_s[i, span.stop]:
                    comes_s[i, span.stop], settled = then_s, False
            idle_s[stage] = max(done, default=0.0)
    return Played(tuple(done_s), idle_s)


def _known(known: Known, status: StageStatus, held: Sequence[Held]) -> Sequence[float]:
    key = status.model, status.tier, tuple((h.steps, h.decodes, h.arrives_s) for h in held)
    if key not in known:
        known[key] = ahead(status, held)
    return known[key]


def _held(i: int, span: Span, plan: Plan, at_s: float, wanted: Wanted, view: View) -> Held:
    return Held(
        request=str(i),
        image=0,
        steps=span.steps,
        rows=view.stages[span.stage].rows(guided=True),
        cells=view.cells,
        due_s=wanted.deadline_s,
        encodes=True,
        decodes=span.stop == plan.stop,
        arrives_s=at_s,
    )


def _travel_s(span: Span, plan: Plan, view: View) -> float:
    following = next(each for each in plan.spans if each.start == span.stop)
    return view.links[span.stage, following.stage].transfer_s(view.packet_bytes[span.stop])
