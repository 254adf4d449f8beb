"""When latents can come to stages and leave them, and when they have to, for all stages at once.

Stages of a group lie side by side. Of S stages in G groups, what is known is by stage or group and
by steps or hand-off, and is read by arrays of these of any shape. N is the number of steps.
"""

from __future__ import annotations

from functools import cached_property
from math import inf

import numpy as np

from diffusion_edge.routing.cost import Bools, Counts, Floats
from diffusion_edge.routing.layout import Layout
from diffusion_edge.routing.leaving import Leaving, Moments, Reads, Soonest, each

FAR_S = 1e9
"""Instead of no limit, as links that are not there take for ever."""


class Ways:
    """going, ending: when stages are left, to go on or at last. travel_s: (S, S, Z), by source,
    target and size of packet; infinite where there is no link. size: (N + 1,), by hand-off."""

    def __init__(
        self,
        layout: Layout,
        going: Reads[Leaving],
        ending: Reads[Leaving],
        travel_s: Floats,
        size: Counts,
    ) -> None:
        self.layout, self.going, self.ending = layout, going, ending
        self.travel_s, self.size = travel_s, size
        self._latest: dict[float, tuple[Moments, Moments]] = {}

    def hop_s(self, source: Counts, target: Counts, handoff: Counts) -> Floats:
        return _by_pair(self.travel_s, source, target, self.size[handoff])

    @cached_property
    def first(self) -> Moments:
        """When first spans are done: (S, N)."""
        last, first, _ = self.going
        return (last.now, last.now) if first is None else (first.now, last.now)

    def left(self, stage: Counts, steps: Counts) -> Moments:
        """When a first span is done."""
        return _read(self.first, stage, steps)

    def latest(self, stage: Counts, steps: Counts, until_s: float) -> Moments:
        """When a last span has to begin, for its picture to be done by then."""
        return _read(self.latest_by(until_s), stage, steps)

    def latest_by(self, until_s: float) -> Moments:
        """The same, (S, N)."""
        return self._latest_by(until_s)[0]

    def _latest_by(self, until_s: float) -> tuple[Moments, Moments]:
        """Of stages, and of groups."""
        if until_s not in self._latest:
            last, _, alone = self.ending
            latest_s = last.latest(min(until_s, FAR_S))
            both = latest_s, latest_s if alone is None else alone.latest(min(until_s, FAR_S))
            self._latest[until_s] = both, each(both, self.layout.most)
        return self._latest[until_s]

    # ------------------------------------------------------------------ of groups

    def left_of(self, group: Counts, steps: Counts) -> Moments:
        """When a first span could be done."""
        return _read(self._first_of, group, steps)

    def hop_of(self, source: Counts, target: Counts, handoff: Counts) -> Floats:
        return _by_pair(self._travel_of, source, target, self.size[handoff])

    def due_of(self, group: Counts, to: Counts, steps: Counts, until_s: float) -> Moments:
        """When a group has to be left, at the latest, for so many steps to be done in another by
        then, and the picture."""
        hop_s = self.hop_of(group, to, len(self.size) - 1 - steps)
        return each(_read(self._latest_by(until_s)[1], to, steps), lambda s: s - hop_s)

    @cached_property
    def _travel_of(self) -> Floats:
        return self.layout.least(self.layout.least(self.travel_s), axis=1)

    @cached_property
    def _first_of(self) -> Moments:
        return each(self.first, self.layout.least)

    @cached_property
    def soonest(self) -> Reads[Soonest]:
        """When groups could be left."""
        last, first, alone = self.going
        return Reads(
            self._soonest_of(last),
            None if first is None else self._soonest_of(first),
            None if alone is None else self._soonest_of(alone),
        )

    def _soonest_of(self, leaving: Leaving) -> Soonest:
        return Soonest(self.layout.least(leaving.now), self.layout.least(leaving.stays_s()))


class Middle:
    """The second of three spans on single stages: when a latent can come there, from any of a
    group, and when it has to leave, for any of a group. going, ending: (S, N), stages that may have
    so many first or last steps."""

    def __init__(self, ways: Ways, going: Bools, ending: Bools) -> None:
        self._ways, self._ending = ways, ending
        self._hop_s = ways.travel_s[:, :, ways.size[1:-1]]
        self._came = each(ways.first, lambda left_s: self._after(np.where(going, left_s, inf)))
        self._due: dict[float, Moments] = {}

    def _after(self, left_s: Floats) -> Floats:
        """By group, stage and hand-off."""
        return self._ways.layout.least(left_s[:, None, :-1] + self._hop_s)

    def _before(self, latest_s: Floats) -> Floats:
        """By stage, group and hand-off."""
        by_handoff = np.where(self._ending, latest_s, -inf)[:, -2::-1]
        return self._ways.layout.most(by_handoff - self._hop_s, axis=1)

    def came(self, group: Counts, stage: Counts, steps: Counts) -> Moments:
        """steps: of the first span."""
        return each(self._came, lambda came_s: _by_pair(came_s, group, stage, steps - 1))

    def due(self, stage: Counts, group: Counts, handoff: Counts, until_s: float) -> Moments:
        if until_s not in self._due:
            self._due[until_s] = each(self._ways.latest_by(until_s), self._before)
        return each(self._due[until_s], lambda due_s: _by_pair(due_s, stage, group, handoff - 1))


def _by_pair(of: Floats, row: Counts, column: Counts, index: Counts) -> Floats:
    _, columns, indices = of.shape
    entry: Counts = (row * columns + column) * indices + index
    return of.ravel().take(entry)


def _read(of: Moments, row: Counts, steps: Counts) -> Moments:
    entry = row * of[0].shape[1] + (steps - 1)
    return each(of, lambda seconds: seconds.ravel().take(entry))
