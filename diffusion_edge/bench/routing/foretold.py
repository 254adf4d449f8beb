"""What the stages' rules, run ahead, say of arrivals that all take one plan: which fixed plans to
measure, and where to look for the highest rate. No torch.

Nothing is decided here, so no view changes: the arrivals pass one stage after the other, each
played by `forecast.ahead`. Links are taken to be free whenever a packet comes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations, islice, pairwise, permutations
from statistics import fmean

from diffusion_edge.arrivals import poisson
from diffusion_edge.bench.routing.live import Wanted
from diffusion_edge.plan import Plan
from diffusion_edge.routing.forecast import ahead
from diffusion_edge.view import Held, View

CANDIDATES = 40
"""Plans that are played over all arrivals, after all were over the first ones."""
FIRST = 60
HALVINGS = 12


def unit_arrivals(count: int, seed: str) -> list[float]:
    """Of a Poisson process of one a second; divided by a rate, of one of that rate."""
    return list(islice(poisson(1.0, random.Random(seed)), count))


def finishes(plan: Plan, due: Sequence[float], wanted: Wanted, view: View) -> list[float]:
    """When each of these arrivals would be done, if there were no others."""
    at = list(due)
    for span in plan.spans:
        status = view.stages[span.stage]
        last = span.stop == plan.stop
        held = [
            Held(
                request=str(i),
                image=0,
                steps=span.steps,
                rows=status.rows(guided=True),
                cells=view.cells,
                due_s=due[i] + wanted.deadline_s,
                encodes=True,
                decodes=last,
                arrives_s=at[i],
            )
            for i in range(len(due))
        ]
        at = list(ahead(status, held))
        if not last:
            target = plan.spans[plan.spans.index(span) + 1].stage
            travel_s = view.links[span.stage, target].transfer_s(view.packet_bytes[span.stop])
            at = [each + travel_s for each in at]
    return at


def share_in_time(done: Sequence[float], due: Sequence[float], deadline_s: float) -> float:
    return fmean(end - begin <= deadline_s for end, begin in zip(done, due, strict=True))


def best_fixed(
    plans: Sequence[Plan], due: Sequence[float], wanted: Wanted, view: View, count: int
) -> list[Plan]:
    """The plans that would have most of the arrivals in time; of equal ones, the earlier."""
    few = _ranked(plans, due[:FIRST], wanted, view)[:CANDIDATES]
    return _ranked(few, due, wanted, view)[:count]


def _ranked(plans: Sequence[Plan], due: Sequence[float], wanted: Wanted, view: View) -> list[Plan]:
    def key(plan: Plan) -> tuple[float, float]:
        done = finishes(plan, due, wanted, view)
        late_s = fmean(end - begin for end, begin in zip(done, due, strict=True))
        return -share_in_time(done, due, wanted.deadline_s), late_s

    return sorted(plans, key=key)


def all_plans(view: View, steps: int) -> Iterator[Plan]:
    """Of one to three spans over different stages of the view."""
    for spans in range(1, min(3, len(view.stages), steps) + 1):
        for order in permutations(sorted(view.stages), spans):
            if all(hop in view.links for hop in pairwise(order)):
                for cuts in combinations(range(1, steps), spans - 1):
                    counts = (b - a for a, b in pairwise((0, *cuts, steps)))
                    plan = Plan.of(tuple(zip(order, counts, strict=True)))
                    yield plan.with_codecs(view.codecs)


def highest_rate(
    stages: Sequence[str], unit: Sequence[float], share: float, wanted: Wanted, view: View
) -> float:
    """At which whole pictures on these stages in turn are in time in so large a share."""
    alone_s = [
        finishes(Plan.of(((name, wanted.steps),)), [0.0], wanted, view)[0] for name in stages
    ]
    low, high = 0.0, 32 * sum(1 / seconds for seconds in alone_s)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = _in_turn(stages, [at / middle for at in unit], wanted, view)
        low, high = (middle, high) if found >= share else (low, middle)
    return low


def _in_turn(stages: Sequence[str], due: Sequence[float], wanted: Wanted, view: View) -> float:
    kept = 0.0
    for k, name in enumerate(stages):
        own = due[k :: len(stages)]
        done = finishes(Plan.of(((name, wanted.steps),)), own, wanted, view)
        kept += len(own) * share_in_time(done, own, wanted.deadline_s)
    return kept / len(due)


def unloaded_s(stage: str, wanted: Wanted, view: View) -> float:
    """Of one picture on one stage that has nothing else to do."""
    return finishes(Plan.of(((stage, wanted.steps),)), [0.0], wanted, view)[0]
