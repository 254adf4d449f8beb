"""Every plan that a request could take, one order of stages after another: what the router's search
has to equal, and what tests of single rules go through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

import numpy as np

from diffusion_edge.routing import cost, finish
from diffusion_edge.routing.cost import Counts, Floats, Line, cuts
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.types import ImageRequest, Link, Plan, View

DIGITS = 9


@dataclass(frozen=True)
class Bundle:
    """Plans over the same stages in the same order: steps[k] is by plan."""

    stages: tuple[str, ...]
    steps: tuple[Counts, ...]

    def __len__(self) -> int:
        return len(self.steps[0])

    def plan(self, index: int) -> Plan:
        counts = (int(count[index]) for count in self.steps)
        return Plan.of(tuple(zip(self.stages, counts, strict=True)))


def bundles(
    stages: Sequence[str], steps: int, links: Mapping[tuple[str, str], Link]
) -> Iterator[Bundle]:
    """In the order in which ties go."""
    for spans in range(1, min(3, len(stages), steps) + 1):
        for order in permutations(sorted(stages), spans):
            if all(hop in links for hop in pairwise(order)):
                yield Bundle(order, cuts(steps, spans))


Best = tuple[float, float, str]
"""What is compared first, what is compared then, and the plan."""


def best(
    request: ImageRequest,
    view: View,
    quality: QualityTable,
    charged: Mapping[str, Line],
    limit_s: float | None = None,
) -> list[Best]:
    """Of the plans above the floor, the one that is charged least within the limit, or, without
    one, the one that is done first, and the best over other stages or another order of them."""
    tables, found = finish.Tables(request, view), []
    for b in bundles(list(charged), request.steps, view.links):
        guided = [cost.guided(name, request, view) for name in b.stages]
        finish_s = finish.predict(b.stages, b.steps, guided, request.images, tables, view)
        models = cost.models(b.stages, view)
        value = quality.bound_all(models, b.steps, request.size).round(DIGITS)
        first, then = total(b, charged).round(DIGITS), finish_s.round(DIGITS)
        good = value >= round(request.quality_floor, DIGITS)
        if limit_s is None:
            first, then = then, first
        else:
            good &= then <= round(limit_s, DIGITS)
        if good.any():
            order = np.lexsort((then, first))
            index = int(order[good[order]][0])
            key = float(first[index]), float(then[index])
            found.append((*key, len(b.stages), len(found), str(b.plan(index))))
    found.sort()
    return [(first, then, plan) for first, then, _, _, plan in found[:2]]


def total(b: Bundle, lines: Mapping[str, Line]) -> Floats:
    taken = np.zeros(len(b))
    for k, (name, steps) in enumerate(zip(b.stages, b.steps, strict=True)):
        line = lines[name]
        taken = taken + line.start + steps * line.step + (k == len(b.stages) - 1) * line.end
    return taken
