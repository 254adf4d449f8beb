"""Plans by shape: all that a plan is but for which of several stages alike runs a span.

Stages that run one model on one tier are a group. A shape is an order of one to three groups with
the steps on each; the quality of a plan follows from its shape alone. So the shapes above a floor
are found once for all requests of a size, a number of steps and a floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

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


class Parts(NamedTuple):
    """What shapes have in common, each once. groups: (J, P), of J spans one after another. steps:
    (J, P), or (1, P) of the last one alone. which: of them each shape has."""

    groups: Counts
    steps: Counts
    which: Counts


@dataclass(frozen=True)
class Block:
    """Shapes of K spans. groups, steps: (K, R), by span and shape. quality, bound: (R,), as
    estimated and what the floor is held against."""

    groups: Counts
    steps: Counts
    quality: Floats
    bound: Floats

    @property
    def spans(self) -> int:
        return len(self.groups)

    @cached_property
    def slot(self) -> Counts:
        """Where flat arrays by group and steps have each span: (K, R)."""
        slot: Counts = self.groups * self.steps[:, :1].sum() + (self.steps - 1)
        return slot

    @cached_property
    def at(self) -> Counts:
        """Of each shape itself, and of each of its spans its group, its steps, and room for a
        stage: (1 + 3 K, R)."""
        at = np.zeros((1 + 3 * self.spans, len(self.bound)), np.int64)
        at[0], at[1::3], at[2::3] = np.arange(len(self.bound)), self.groups, self.steps
        return at

    @cached_property
    def begins(self) -> Parts:
        """All spans but the last one."""
        return _parts(self.groups[:-1], self.steps[:-1])

    @cached_property
    def ends(self) -> Parts:
        """The last two spans, by the steps of the last one."""
        return _parts(self.groups[-2:], self.steps[-1:])

    @cached_property
    def orders(self) -> tuple[Counts, Counts]:
        """Orders of groups, (K, O), and how many shapes have each."""
        orders, numbers = np.unique(self.groups, axis=1, return_counts=True)
        return orders, numbers

    def only(self, kept: Bools) -> Block:
        return Block(
            self.groups[:, kept], self.steps[:, kept], self.quality[kept], self.bound[kept]
        )


def _parts(groups: Counts, steps: Counts) -> Parts:
    key = np.zeros(groups.shape[1], np.int64)
    for row in (*groups, *steps):
        key = key * (row.max(initial=0) + 1) + row
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    return Parts(groups[:, first], steps[:, first], which.reshape(-1))


@dataclass(frozen=True)
class Shapes:
    """blocks: those of one span first."""

    blocks: tuple[Block, ...]

    def count(self, paths: Sequence[Counts]) -> int:
        """How many plans they are. paths: how many ways to choose stages, by number of spans and
        groups."""
        count = 0
        for block, ways in zip(self.blocks, paths, strict=False):
            orders, numbers = block.orders
            count += int(ways[*orders] @ numbers)
        return count

    def best(self, paths: Sequence[Counts]) -> float:
        """The highest bound of one that is a plan, 0 if there is none."""
        return max(
            float(block.bound.max(initial=0.0, where=ways[*block.groups] > 0))
            for block, ways in zip(self.blocks, paths, strict=False)
        )

    def above(self, floor: float) -> Shapes:
        return Shapes(tuple(block.only(block.bound >= floor) for block in self.blocks))

    @cached_property
    def kinds(self) -> list[tuple[tuple[int, ...], Shapes]]:
        """By order of groups, those of fewer spans first."""
        return [
            (tuple(order.tolist()), Shapes((block.only((order == block.groups.T).all(axis=1)),)))
            for block in self.blocks
            for order in block.orders[0].T
        ]


def shapes(groups: Sequence[Group], steps: int, quality: QualityTable, size: Size) -> Shapes:
    """All of them, whatever their quality."""
    asked = tuple(groups), steps, size
    return _SHAPES.of(quality, asked, lambda: _every(quality, *asked))


def above(
    groups: Sequence[Group], steps: int, quality: QualityTable, size: Size, floor: float
) -> Shapes:
    """Those that reach a quality floor."""
    asked = tuple(groups), steps, size
    told = *asked, round(floor, DIGITS)
    return _SHAPES.of(
        quality, told, lambda: shapes(*asked[:2], quality, size).above(round(floor, DIGITS))
    )


_SHAPES: Kept[Shapes] = Kept(64)


def _every(quality: QualityTable, groups: tuple[Group, ...], steps: int, size: Size) -> Shapes:
    of = range(1, min(SPANS, steps) + 1)
    return Shapes(tuple(_block(quality, groups, spans, steps, size) for spans in of))


def _block(
    quality: QualityTable, groups: Sequence[Group], spans: int, steps: int, size: Size
) -> Block:
    orders, parts = list(_orders(groups, spans)), cuts(steps, spans)
    models = [[groups[g].model for g in order] for order in orders]
    told = [np.zeros(0)]  # where there are no orders
    return Block(
        groups=np.repeat(np.array(orders, np.int64).reshape(-1, spans).T, len(parts[0]), axis=1),
        steps=np.tile(np.stack(parts), len(orders)),
        quality=np.concatenate(
            [*told, *(quality.relative_all(of, parts, size) for of in models)]
        ).round(DIGITS),
        bound=np.concatenate([*told, *(quality.bound_all(of, parts, size) for of in models)]).round(
            DIGITS
        ),
    )


def _orders(groups: Sequence[Group], spans: int) -> Iterator[tuple[int, ...]]:
    for order in product(range(len(groups)), repeat=spans):
        if all(order.count(g) <= groups[g].size for g in order):
            yield order
