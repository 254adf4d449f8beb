"""What a view has for a request, in arrays: the stages, what they ask, and the ways between them.

A *station* is a stage that a latent goes on from, a stage that it ends at, or nobody (see
`shapes`). Of S stages in G groups, stations 0 to S - 1 go on, S to 2 S - 1 end, 2 S is nobody;
stages of a group lie side by side. So places and stations are in one order, and what is told of a
place is the best of its stations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, repeat
from math import inf
from operator import attrgetter, itemgetter

import numpy as np

from diffusion_edge.plan import Tier
from diffusion_edge.routing.cost import Bools, Counts, Floats, Line
from diffusion_edge.routing.finish import Table
from diffusion_edge.routing.leaving import Earliest, Leaving, Reads, earliest, of_sets
from diffusion_edge.routing.shapes import SPANS, Group
from diffusion_edge.view import StageStatus, View


@dataclass(frozen=True)
class Stations:
    """names: of stages; rank: by station, where its stage stands among the names in order. members:
    stations of each place, filled up with `none`, which is no station. starts: the first station of
    each place. stage: of each station. leaving: when latents leave stations.

    Packets have some sizes, `size` says which by hand-off. travel_s: flat, by stage, stage and
    size, with nobody and none as stages, too; infinite where there is no link. price: flat, by
    station and steps. least_price, least_s: the same of places and of groups.

    allows: of latents, by the row of their stage in `names`, when they come, and their steps:
    whether the stage takes them. Nobody and none come after the names.
    """

    names: tuple[str, ...]
    groups: tuple[Group, ...]
    rank: Counts
    members: Counts
    starts: Counts
    stage: Counts
    leaving: Reads[Leaving]
    size: Counts
    travel_s: Floats
    price: Floats
    least_price: Floats
    least_s: Floats
    _ahead: dict[float, Reads[Earliest]]
    allows: Callable[[Counts, Floats, Counts], Bools] | None = None

    @property
    def nobody(self) -> int:
        return 2 * len(self.names)

    @property
    def none(self) -> int:
        return self.nobody + 1

    def charging(self, price: Mapping[str, Line]) -> Stations:
        """The same with other prices."""
        steps = len(self.price) // len(self.stage)
        prices = _prices([price[name] for name in self.names], steps)
        least = of_sets(np.minimum, prices[:-1], self.starts)
        return replace(self, price=prices.ravel(), least_price=least.ravel())

    def earliest(self, until_s: float) -> Reads[Earliest]:
        """When latents could leave places, known in detail until then, or somewhat longer."""
        for until, known in self._ahead.items():
            if until_s <= until <= 2 * until_s:
                return known
        return self._ahead.setdefault(until_s, earliest(self.leaving, self.starts, until_s))

    def group_of(self) -> dict[str, Group]:
        """By stage."""
        of = np.searchsorted(self.starts, np.arange(len(self.names)), side="right") - 1
        return {name: self.groups[g] for name, g in zip(self.names, of.tolist(), strict=True)}

    def hop_s(self, source: Counts, target: Counts, handoff: Counts) -> Floats:
        """Between stations."""
        way = self.stage[source] * (len(self.names) + 2) + self.stage[target]
        seconds: Floats = self.travel_s[way * (int(self.size.max()) + 1) + self.size[handoff]]
        return seconds

    def paths(self) -> Counts:
        """How many ways there are to choose a stage for each of three places, by places."""
        stages, groups = len(self.names), len(self.groups)
        width = stages + 2
        linked = np.isfinite(self.travel_s.reshape(width, width, -1)[:stages, :stages, 0])
        member = np.zeros((groups, stages), np.int64)
        for g in range(groups):
            member[g, self.members[g, self.members[g] < self.none]] = 1
        two = member @ linked @ member.T
        three = np.einsum("as,bs,sc->abc", member @ linked, member, linked @ member.T)
        there_and_back = member @ (linked & linked.T) @ member.T
        every = np.arange(groups)
        three[every, :, every] -= there_and_back
        nobody = 2 * groups
        paths = np.zeros((nobody + 1,) * 3, np.int64)
        paths[groups:nobody, nobody, nobody] = member.sum(axis=1)
        paths[:groups, groups:nobody, nobody] = two
        paths[:groups, :groups, groups:nobody] = three
        return paths


def stations(
    view: View,
    steps: int,
    price: Mapping[str, Line],
    tables: Mapping[str, Table],
    alone: Mapping[str, Table] | None = None,
) -> Stations:
    """Of the stages that `price` has. tables: of all images of the request; alone: of one, where
    there are several."""
    names = sorted(price, key=lambda name: (*_kind(view.stages[name]), name))
    alike = groupby(_kind(view.stages[name]) for name in names)
    kinds = [(kind, len(list(same))) for kind, same in alike]
    counts = [count for _, count in kinds]
    stages, groups = len(names), len(kinds)
    begin = np.cumsum([0, *counts])[:-1]
    starts = np.array([*begin, *(begin + stages), 2 * stages])
    members = np.full((2 * groups + 1, max(counts)), 2 * stages + 1)
    for place, count in enumerate([*counts, *counts, 1]):
        members[place, :count] = starts[place] + np.arange(count)
    of_all = [tables[name] for name in names]
    of_one = None if alone is None else [alone[name] for name in names]
    in_order = {name: rank for rank, name in enumerate(sorted(names))}
    rank = [in_order[name] for name in names]
    prices = _prices([price[name] for name in names], steps)
    nbytes, size = np.unique(view.packet_bytes[: steps + 1], return_inverse=True)
    travel_s = _travel_s(names, view, nbytes)
    return Stations(
        names=tuple(names),
        groups=tuple(Group(*kind, min(count, SPANS)) for kind, count in kinds),
        rank=np.array([*rank, *rank, -1, -1]),
        members=members,
        starts=starts,
        stage=np.array([*range(stages), *range(stages), stages, stages + 1]),
        leaving=_leaving(of_all, of_one),
        size=size,
        travel_s=travel_s.ravel(),
        price=prices.ravel(),
        least_price=of_sets(np.minimum, prices[:-1], starts).ravel(),
        least_s=_least_s(travel_s[:-1, :-1], np.array([*begin, stages]))[:, :, size].ravel(),
        _ahead={},
    )


def _kind(status: StageStatus) -> tuple[str, Tier]:
    return status.model, status.tier


def _prices(lines: Sequence[Line], steps: int) -> Floats:
    start, step, end = np.array([(line.start, line.step, line.end) for line in lines]).T
    going_on = start[:, None] + np.outer(step, np.arange(1, steps + 1))
    nobody, none = np.zeros((1, steps)), np.full((1, steps), inf)
    return np.concatenate([going_on, going_on + end[:, None], nobody, none])


def _travel_s(names: Sequence[str], view: View, nbytes: Counts) -> Floats:
    """By stage, stage and packet size, nobody and none at last."""
    stages = len(names)
    row = {name: i for i, name in enumerate(names)}
    travel_s = np.full((stages + 2, stages + 2, len(nbytes)), inf)
    source, target = (
        np.fromiter(map(row.get, map(itemgetter(end), view.links), repeat(-1)), np.int64)
        for end in (0, 1)
    )
    delay_s, bytes_per_s = (
        np.fromiter(map(attrgetter(of), view.links.values()), np.float64)[:, None]
        for of in ("delay_s", "bytes_per_s")
    )
    travel_s[source, target] = delay_s + nbytes / bytes_per_s
    travel_s[:, stages] = 0.0
    travel_s[-1], travel_s[:, -1] = inf, inf  # of stages that are not asked for, too
    every = np.arange(stages)
    travel_s[every, every] = inf
    return travel_s


def _least_s(travel_s: Floats, begin: Counts) -> Floats:
    return np.minimum.reduceat(np.minimum.reduceat(travel_s, begin), begin, axis=1)


def _leaving(tables: Sequence[Table], alone: Sequence[Table] | None) -> Reads[Leaving]:
    last = _stacked(tables, [t.last_s for t in tables], [t.done_s for t in tables])
    if alone is None:
        return Reads(last)
    first = [t.first_s for t in tables]
    return Reads(
        last,
        _stacked(tables, first, first),
        _stacked(alone, [t.last_s for t in alone], [t.done_s for t in alone]),
    )


def _stacked(
    tables: Sequence[Table], going_on: Sequence[Floats], ending: Sequence[Floats]
) -> Leaving:
    """Whoever comes to nobody, or to no station, leaves when it comes."""
    arrives_s, at_once = [table.arrives_s for table in tables], np.arange(2.0)
    leaves_s = np.broadcast_to(at_once[:, None], (2, going_on[0].shape[1]))
    return Leaving(
        [*arrives_s, *arrives_s, at_once, at_once], [*going_on, *ending, leaves_s, leaves_s]
    )
