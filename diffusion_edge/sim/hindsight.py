"""The policy `hindsight`: the best plan that all requests could have taken alike.

It is found by trying: 40 plans, spread over all coarse ones that reach the floor, then what is
beside the best five of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations

from diffusion_edge.plan import Plan
from diffusion_edge.routing.cost import cuts

COARSE, BEST = 40, 5
PARTS = 5, 10
"""Hand-offs of coarse plans are at fifths of the steps, or where these are too few at tenths."""
BESIDE = (-2, -1, 1, 2)
"""Steps by which a hand-off is moved in the end."""


def hindsight(plans: Sequence[Plan], worth: Callable[[Plan], float]) -> tuple[Plan, float]:
    """The best of the plans, and of those beside the best of them that are among `plans`, too; with
    its worth. Of equal ones the first. plans: those that reach the floor, all of them."""
    found = {plan: worth(plan) for plan in coarse(plans)}
    possible = set(plans)
    for plan in sorted(found, key=found.__getitem__, reverse=True)[:BEST]:
        for near in beside(plan):
            if near in possible and near not in found:
                found[near] = worth(near)
    best = max(found, key=found.__getitem__)
    return best, found[best]


def every(stages: Sequence[str], steps: int) -> Iterator[Plan]:
    """All plans of one to three spans over these stages."""
    for spans in range(1, min(len(stages), steps, 3) + 1):
        for order in permutations(stages, spans):
            for counts in zip(*(each.tolist() for each in cuts(steps, spans)), strict=True):
                yield Plan.of(tuple(zip(order, counts, strict=True)))


def coarse(plans: Sequence[Plan]) -> list[Plan]:
    """COARSE of them, if there are so many: of one or two spans first, and of those that are alike
    evenly."""
    fifths, tenths = ([p for p in plans if _is_coarse(p, parts)] for parts in PARTS)
    short = [plan for plan in fifths if len(plan.spans) < 3]
    found: list[Plan] = []
    for some in (short, fifths, tenths, plans):
        others = [plan for plan in some if plan not in found]
        found += spread(others, COARSE - len(found))
    return found


def _is_coarse(plan: Plan, parts: int) -> bool:
    coarse_steps = {round(k * plan.steps / parts) for k in range(parts)}
    return all(span.start in coarse_steps for span in plan.spans)


def spread(plans: Sequence[Plan], most: int) -> list[Plan]:
    """So many of them, evenly; all if there are no more."""
    if len(plans) <= most:
        return list(plans)
    return [plans[k * len(plans) // most] for k in range(most)]


def beside(plan: Plan) -> Iterator[Plan]:
    """With one hand-off moved."""
    stages, ends = [span.stage for span in plan.spans], [span.stop for span in plan.spans]
    for k in range(len(ends) - 1):
        for by in BESIDE:
            moved = [*ends[:k], ends[k] + by, *ends[k + 1 :]]
            counts = [stop - start for start, stop in zip([0, *moved], moved, strict=False)]
            if min(counts) > 0:
                yield Plan.of(tuple(zip(stages, counts, strict=True)))
