"""Plans by shape: all that a plan is but for which of several stages alike runs a span.

Stages that run one model on one tier are a group. A shape is an order of one to three groups with
the steps on each; the quality of a plan follows from its shape alone. So the shapes above a floor
are found once for all requests of a size, a number of steps and a floor.

In a shape a span's *place* is its group g, or G + g where it is the last span, of G groups. All
shapes have three places: after the last span comes 2 G, nobody, as a span of one step that takes no
time and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product

import numpy as np

from diffusion_edge.plan import Tier
from diffusion_edge.routing.cost import Bools, Counts, Floats, cuts
from diffusion_edge.routing.kept import Kept
from diffusion_edge.routing.quality import QualityTable, Size

SPANS = 3
"""Of a plan at most."""

DIGITS = 9
"""Seconds, prices and qualities are compared to so many: the order of a sum is no reason."""


@dataclass(frozen=True)
class Group:
    """Stages that run one model on one tier. size: how many, SPANS if there are more."""

    model: str
    tier: Tier
    size: int


@dataclass(frozen=True)
class Spans:
    """The k-th spans of many shapes, or of what these begin with.

    place, steps: of the span. handoff: steps before it. slot, way: where `flat` arrays have it, by
    place and steps, and by the group before, its own (see `of_places`) and hand-off. parent: which
    one of the spans before it comes after.
    """

    parent: Counts
    place: Counts
    steps: Counts
    handoff: Counts
    slot: Counts
    way: Counts

    def only(self, kept: Counts) -> Spans:
        return Spans(*(getattr(self, each.name)[kept] for each in fields(self)))


@dataclass(frozen=True)
class Shapes:
    """Of `groups` groups and `total` steps. spans: by k, of all shapes. tree: the same, but that
    shapes that begin alike share what they begin with. quality, bound: by shape, as estimated and
    what the floor is held against."""

    groups: int
    total: int
    quality: Floats
    bound: Floats
    spans: tuple[Spans, ...]
    tree: tuple[Spans, ...]

    def __len__(self) -> int:
        return len(self.quality)

    def count(self, paths: Counts) -> int:
        """How many plans they are. paths: how many ways to choose stages, by places."""
        return int(sum(paths[*order] * number for order, number in self._orders))

    def best(self, paths: Counts) -> float:
        """The highest bound of one that is a plan, 0 if there is none."""
        possible = paths[*(span.place for span in self.spans)] > 0
        return float(self.bound[possible].max(initial=0.0))

    def kinds(self) -> list[tuple[tuple[int, ...], Shapes]]:
        """By order of groups, those of fewer spans first."""
        nobody = 2 * self.groups
        by_order = []
        for order, _ in self._orders:
            same = np.logical_and.reduce(
                [span.place == at for span, at in zip(self.spans, order, strict=True)]
            )
            groups = tuple(at % self.groups for at in order if at != nobody)
            by_order.append((groups, self.only(same)))
        return sorted(by_order, key=lambda kind: (len(kind[0]), kind[0]))

    @cached_property
    def _orders(self) -> list[tuple[list[int], int]]:
        """Orders of places, and how many shapes have each."""
        places = np.stack([span.place for span in self.spans], axis=1)
        orders, numbers = np.unique(places, axis=0, return_counts=True)
        return list(zip(orders.tolist(), numbers.tolist(), strict=True))

    def only(self, kept: Bools) -> Shapes:
        places = [span.place[kept] for span in self.spans]
        steps = [span.steps[kept] for span in self.spans]
        of = self.quality[kept], self.bound[kept]
        return _shapes(self.groups, self.total, places, steps, *of)


def shapes(groups: Sequence[Group], steps: int, quality: QualityTable, size: Size) -> Shapes:
    """All of them, whatever their quality."""
    asked = tuple(groups), steps, size
    return _SHAPES.of(quality, asked, lambda: _every(quality, *asked))


def above(
    groups: Sequence[Group], steps: int, quality: QualityTable, size: Size, floor: float
) -> Shapes:
    """Those that reach a quality floor."""
    asked = tuple(groups), steps, size, round(floor, DIGITS)
    return _SHAPES.of(quality, asked, lambda: _above(quality, *asked))


_SHAPES: Kept[Shapes] = Kept(64)


def _above(
    quality: QualityTable, groups: tuple[Group, ...], steps: int, size: Size, floor: float
) -> Shapes:
    every = shapes(groups, steps, quality, size)
    return every.only(every.bound >= floor)


def _every(quality: QualityTable, groups: tuple[Group, ...], steps: int, size: Size) -> Shapes:
    places, each, values, bounds = [], [], [], []
    for order in _orders(groups, min(SPANS, steps)):
        parts, rest = cuts(steps, len(order)), SPANS - len(order)
        place = (*order[:-1], len(groups) + order[-1], *(2 * len(groups),) * rest)
        places.append(np.broadcast_to(np.array(place)[:, None], (SPANS, len(parts[0]))))
        each.append(np.stack([*parts, *[np.ones_like(parts[0])] * rest]))
        models = [groups[g].model for g in order]
        values.append(quality.relative_all(models, parts, size).round(DIGITS))
        bounds.append(quality.bound_all(models, parts, size).round(DIGITS))
    return _shapes(
        len(groups),
        steps,
        list(np.concatenate(places, axis=1)),
        list(np.concatenate(each, axis=1)),
        np.concatenate(values),
        np.concatenate(bounds),
    )


def _orders(groups: Sequence[Group], most: int) -> Iterator[tuple[int, ...]]:
    for spans in range(1, most + 1):
        for order in product(range(len(groups)), repeat=spans):
            if all(order.count(g) <= groups[g].size for g in order):
                yield order


def _shapes(
    groups: int,
    total: int,
    places: Sequence[Counts],
    steps: Sequence[Counts],
    quality: Floats,
    bound: Floats,
) -> Shapes:
    """places, steps: by span and shape."""
    spans, tree = [], []
    node = before = handoff = np.zeros(len(quality), np.int64)
    group = of_places(groups)
    for place, count in zip(places, steps, strict=True):
        slot = place * total + count - 1
        way = (before * (groups + 1) + group[place]) * (total + 1) + handoff
        spans.append(Spans(np.arange(len(quality)), place, count, handoff, slot, way))
        key = node * ((2 * groups + 1) * total) + slot
        _, first, after = np.unique(key, return_index=True, return_inverse=True)
        if len(spans) == SPANS:
            first = np.arange(len(quality))
        tree.append(replace(spans[-1].only(first), parent=node[first]))
        node, before = after.reshape(-1), group[place]
        handoff = handoff + np.where(place < 2 * groups, count, 0)
    return Shapes(groups, total, quality, bound, tuple(spans), tuple(tree))


def of_places(groups: int) -> Counts:
    """The group of each place; that of nobody comes last."""
    return np.array([*range(groups), *range(groups), groups])
