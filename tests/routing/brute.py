"""Every plan that a request could take, one order of stages after another: what the router's search
has to equal, and what tests of single rules go through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

import numpy as np

from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost, finish
from diffusion_edge.routing.best import Asked
from diffusion_edge.routing.cost import Counts, Floats, Line, cuts
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.view import Link, View

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
"""Price, finish and the plan."""


def best(
    request: ImageRequest,
    view: View,
    quality: QualityTable,
    charged: Mapping[str, Line],
    asked: Asked,
) -> list[Best]:
    """Of the plans above the floor within the limits the best one, and the best one over other
    stages or another order of them."""
    tables, found = finish.Tables(request, view), []
    for b in bundles(list(charged), request.steps, view.links):
        guided = [cost.guided(name, request, view) for name in b.stages]
        models = cost.models(b.stages, view)
        bound = quality.bound_all(models, b.steps, request.size).round(DIGITS)
        price = total(b, charged).round(DIGITS)
        finish_s = finish.predict(b.stages, b.steps, guided, request.images, tables, view)
        finish_s = finish_s.round(DIGITS)
        good = bound >= round(request.quality_floor, DIGITS)
        good &= (finish_s <= round(asked.finish_s, DIGITS)) & (price <= round(asked.price, DIGITS))
        if good.any():
            by = {"price": (price, finish_s), "finish": (finish_s, price), "bound": (-bound, price)}
            first, then = by[asked.by]
            order = np.lexsort((then, first))
            i = int(order[good[order]][0])
            key = float(first[i]), float(then[i]), len(b.stages), len(found)
            found.append((key, (float(price[i]), float(finish_s[i]), str(b.plan(i)))))
    return [told for _, told in sorted(found)[:2]]


def total(b: Bundle, lines: Mapping[str, Line]) -> Floats:
    taken = np.zeros(len(b))
    for k, (name, steps) in enumerate(zip(b.stages, b.steps, strict=True)):
        line = lines[name]
        taken = taken + line.start + steps * line.step + (k == len(b.stages) - 1) * line.end
    return taken
