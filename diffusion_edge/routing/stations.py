"""What a view has for a request, in arrays: stages, what they ask, and the ways between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import repeat
from math import inf
from operator import attrgetter, itemgetter
from typing import NamedTuple

import numpy as np

from diffusion_edge.routing.cost import Bools, Counts, Floats, Line
from diffusion_edge.routing.finish import Table
from diffusion_edge.routing.layout import Layout, layout
from diffusion_edge.routing.leaving import Knots, Leaving, Reads
from diffusion_edge.routing.shapes import Group
from diffusion_edge.routing.ways import Ways
from diffusion_edge.view import View

Allows = Callable[[Counts, Floats, Counts], Bools]
"""Of latents, by their stage, when they come, and their steps: whether the stage takes them."""


class Prices(NamedTuple):
    """By stage and steps, for one that goes on and one that ends: (S, N). least: of groups, (G, N).
    more: what stages ask beside the least of their group."""

    going: Floats
    least_going: Floats
    more_going: Floats
    ending: Floats
    least_ending: Floats
    more_ending: Floats


@dataclass(frozen=True)
class Stations:
    layout: Layout
    ways: Ways
    prices: Prices
    allows: Allows | None = None

    def charging(self, price: Mapping[str, Line]) -> Stations:
        """The same with other prices."""
        steps = self.prices.going.shape[1]
        return replace(self, prices=_prices(self.layout, price, steps))

    def group_of(self) -> dict[str, Group]:
        """By stage."""
        known = self.layout
        return {n: known.groups[g] for n, g in zip(known.names, known.of.tolist(), strict=True)}

    def paths(self) -> tuple[Counts, Counts, Counts]:
        """How many ways there are to choose a stage for each of one to three groups, by groups."""
        return self.layout.paths(np.isfinite(self.ways.travel_s[:, :, 0]))


def stations(
    view: View,
    steps: int,
    price: Mapping[str, Line],
    tables: Mapping[str, Table],
    alone: Mapping[str, Table],
    allows: Callable[[Sequence[str]], Allows | None] = lambda _: None,
) -> Stations:
    """Of the stages that `price` has. tables: of all images of the request; alone: of one, where
    there are several. allows: for stages in order."""
    live = view.stages
    known = layout((live[name].model, live[name].tier, name) for name in price)
    nbytes, size = _sizes(view.packet_bytes[: steps + 1])
    travel_s = _travel_s(known.names, view, nbytes)
    going, ending = _leaving(known.names, tables, alone, steps)
    return Stations(
        layout=known,
        ways=Ways(known, going, ending, travel_s, size),
        prices=_prices(known, price, steps),
        allows=allows(known.names),
    )


@lru_cache(64)
def _sizes(packet_bytes: tuple[int, ...]) -> tuple[Counts, Counts]:
    """Each once, and which of them packets have, by hand-off."""
    nbytes, size = np.unique(packet_bytes, return_inverse=True)
    return nbytes, size


def _prices(known: Layout, price: Mapping[str, Line], steps: int) -> Prices:
    lines = [price[name] for name in known.names]
    start, step, end = np.array([(line.start, line.step, line.end) for line in lines]).T
    going = start[:, None] + np.outer(step, np.arange(1, steps + 1))
    ending = going + end[:, None]
    of_going, of_ending = known.least(going), known.least(ending)
    more_going, more_ending = going - of_going[known.of], ending - of_ending[known.of]
    return Prices(going, of_going, more_going, ending, of_ending, more_ending)


def _travel_s(names: Sequence[str], view: View, nbytes: Counts) -> Floats:
    """By stage, stage and packet size; infinite where there is no link."""
    stages, row = len(names), {name: i for i, name in enumerate(names)}
    travel_s = np.full((stages + 1, stages + 1, len(nbytes)), inf)
    source, target = (
        np.fromiter(map(row.get, map(itemgetter(end), view.links), repeat(-1)), np.int64)
        for end in (0, 1)
    )
    delay_s, bytes_per_s = (
        np.fromiter(map(attrgetter(of), view.links.values()), np.float64)[:, None]
        for of in ("delay_s", "bytes_per_s")
    )
    travel_s[source, target] = delay_s + nbytes / bytes_per_s
    every = np.arange(stages)
    travel_s[every, every] = inf
    return travel_s[:-1, :-1].copy()  # others are stages that are not asked for


def _leaving(
    names: Sequence[str], tables: Mapping[str, Table], alone: Mapping[str, Table], steps: int
) -> tuple[Reads[Leaving], Reads[Leaving]]:
    """Going on, and ending."""
    of_all = [tables[name].long for name in names]
    knots = _knots(of_all)
    going = _stacked(knots, [table.last_s for table in of_all], steps)
    ending = _stacked(knots, [table.done_s for table in of_all], steps)
    if not alone:
        return Reads(going), Reads(ending)
    of_one = [alone[name].long for name in names]
    knots_of_one = _knots(of_one)
    first = _stacked(knots, [table.first_s for table in of_all], steps)
    one = _stacked(knots_of_one, [table.last_s for table in of_one], steps)
    done = _stacked(knots_of_one, [table.done_s for table in of_one], steps)
    return Reads(going, first, one), Reads(ending, first, done)


def _knots(tables: Sequence[Table]) -> Knots:
    return Knots(np.concatenate([table.arrives_s for table in tables]).reshape(len(tables), -1))


def _stacked(knots: Knots, leaves_s: Sequence[Floats], steps: int) -> Leaving:
    stacked = np.concatenate(leaves_s)[:, :steps]
    return Leaving(knots, stacked.reshape(len(leaves_s), -1, steps))
