"""Which of some plans is best, and the best two so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Literal, NamedTuple

from diffusion_edge.plan import Plan
from diffusion_edge.routing.cost import Bools, Floats, Line
from diffusion_edge.routing.shapes import DIGITS
from diffusion_edge.view import View

SLACK = 2 * 10.0**-DIGITS
"""Bounds and what they bound are sums in different orders."""


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
    (`Stations.allows`). second: whether the best over other stages is asked for, too."""

    by: Literal["price", "finish", "bound"]
    finish_s: float = inf
    price: float = inf
    barred: bool = False
    second: bool = True

    def rounded(self) -> Asked:
        return replace(self, finish_s=round(self.finish_s, DIGITS), price=round(self.price, DIGITS))

    def ordered(self, price: Floats, finish_s: Floats, bound: Floats) -> tuple[Floats, Floats]:
        """The two things that plans are ordered by before all, the least first."""
        if self.by == "price":
            return price, finish_s
        return (finish_s if self.by == "finish" else -bound), price


class Told(NamedTuple):
    """A plan and what plans are ordered by: the two things that are asked, then the number of
    spans, the stages by their rank among the names, the steps."""

    first: float
    then: float
    spans: int
    ranks: tuple[int, ...]
    steps: tuple[int, ...]
    found: Found


class Best:
    """The best plan so far and, if it is asked for, the best over other stages or another order of
    them. first, then: what the last one has, of the two things that plans are ordered by."""

    def __init__(self, second: bool = True) -> None:
        self._count = 2 if second else 1
        self._plans: list[Told] = []
        self.first = self.then = inf

    def found(self) -> list[Found]:
        return [plan.found for plan in self._plans]

    def worse(self, first: Floats, then: Floats) -> Bools:
        """Whether what has such bounds is worse than both."""
        worse: Bools = first > self.first + SLACK
        return worse | ((first > self.first - SLACK) & (then > self.then + SLACK))

    def add(self, plan: Told) -> None:
        plans = sorted([*self._plans, plan])
        others = [p for p in plans if p.ranks != plans[0].ranks]
        self._plans = [plans[0], *others][: self._count]
        if len(self._plans) == self._count:
            self.first, self.then = self._plans[-1][:2]
