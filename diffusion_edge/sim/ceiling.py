"""What nobody can earn more than, whatever is answered: how far an oracle may be from the best.

Every request takes its best plan that could be in time if it had all stages for itself and links
took no time, but every second that it keeps a kind of stages busy has a price; and all stages of a
kind together have no more seconds than pass from the first arrival to the last deadline. For any
prices

    sum over requests of max(0, max over plans of (reward - price . busy)) + price . all seconds

is at least what can be earned: a plan in time works between its arrival and its deadline, and what
is not in time earns nothing (weak duality, Boyd and Vandenberghe, Convex Optimization, chapter 5).
The prices are those at which it is least, by steps along the subgradient. Pictures of plans below
the floor that a judge lets pass (`cascade`) are not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost
from diffusion_edge.routing.cost import Counts, Floats
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.reward import HALF, cloud_only
from diffusion_edge.view import View

ROUNDS = 400


@dataclass(frozen=True)
class Ways:
    """Plans of a request that could be in time alone, above its floor. earns: (P,); busy: (P, K),
    seconds by which each adds to what a kind of stages has to do."""

    earns: Floats
    busy: Floats


def ceiling(
    arrivals: Sequence[tuple[float, ImageRequest]],
    view: View,
    count: Mapping[str, int],
    quality: QualityTable,
) -> float:
    """view: a stage of each kind with nothing to do, by its kind; count: how many there are. What
    is asked for must have the view's size and its fields but for deadline, floor and steps."""
    alike = Counter(_key(request) for _, request in arrivals)
    asked = {_key(request): request for _, request in arrivals}
    ways = [(ways_of(request, view, quality), alike[key]) for key, request in asked.items()]
    first_s = min(at_s for at_s, _ in arrivals)
    seconds = max(at_s + request.deadline_s for at_s, request in arrivals) - first_s
    there = np.array([seconds * count[name] for name in view.stages])
    return _least(ways, there, len(arrivals))


def _key(request: ImageRequest) -> tuple[object, ...]:
    return (
        request.deadline_s,
        request.quality_floor,
        request.steps,
        request.free_steps,
        request.images,
    )


def ways_of(request: ImageRequest, view: View, quality: QualityTable) -> Ways:
    """In every number of steps that the request may have."""
    counts = sorted({request.steps, *request.free_steps})
    every = [way for steps in counts for way in _in_steps(request.in_steps(steps), view, quality)]
    paid, alone = np.concatenate([p for p, _ in every]), cloud_only(request, view)
    share = HALF * paid / alone if alone else np.zeros(len(paid))
    return Ways(1.0 - share, np.concatenate([busy for _, busy in every]))


def _in_steps(
    request: ImageRequest, view: View, quality: QualityTable
) -> Iterator[tuple[Floats, Floats]]:
    """By order of stages what is paid, (P,), and how busy they are, (P, K)."""
    for spans in range(1, min(len(view.stages), request.steps, 3) + 1):
        counts = cost.cuts(request.steps, spans)
        for order in permutations(view.stages, spans):
            guide = [cost.guided(name, request, view) for name in order]
            good = quality.bound_all(cost.models(order, view), counts, request.size)
            in_time = alone_s(order, counts, guide, view) <= request.deadline_s
            kept = (good >= request.quality_floor) & in_time
            paid = cost.of(order, counts, guide, request.images, view)
            yield paid[kept], _busy_s(order, counts, guide, request.images, view)[kept]


def alone_s(
    order: Sequence[str], counts: Sequence[Counts], guide: Sequence[bool], view: View
) -> Floats:
    """Of one image with all stages for itself, at least: links take no time, and later stages have
    encoded its text when it comes."""
    first = view.stages[order[0]]
    total = np.full(len(counts[0]), first.seconds_to_encode(first.rows(guide[0])))
    for name, steps, guided in zip(order, counts, guide, strict=True):
        total = total + steps * view.stages[name].seconds_per_step(guided, view.cells)
    return total + view.stages[order[-1]].seconds_to_decode(view.cells)


def _busy_s(
    order: Sequence[str], counts: Sequence[Counts], guide: Sequence[bool], images: int, view: View
) -> Floats:
    """(P, K), by kind in the view's order; forward passes are full."""
    names = list(view.stages)
    busy = np.zeros((len(counts[0]), len(names)))
    for k, name in enumerate(order):
        line = cost.full_s(view.stages[name], guide[k], images, view)
        ends = line.end if k == len(order) - 1 else 0.0
        busy[:, names.index(name)] += line.start + counts[k] * line.step + ends
    return busy


def _least(ways: Sequence[tuple[Ways, int]], there: Floats, requests: int) -> float:
    """The bound at the best prices that are found."""
    prices, least = np.zeros(len(there)), float(requests)
    for k in range(ROUNDS):
        total, taken = float(prices @ there), np.zeros(len(there))
        for each, times in ways:
            net = each.earns - each.busy @ prices
            if len(net) and net.max() > 0.0:
                total += times * float(net.max())
                taken += times * each.busy[net.argmax()]
        least = min(least, total)
        slope = (there - taken) / np.maximum(there, 1e-12)
        reach = requests / np.maximum(there, 1e-12)  # at which a kind's seconds cost all there is
        prices = np.maximum(prices - reach * slope / (k + 2), 0.0)
    return least
