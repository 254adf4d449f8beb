"""Who would be late for a request: how much a stage can take with nobody else made late.

Of what a stage holds, and of what is on its way there, the view tells when it has to leave
(`Held.latest_s`), if it was promised to be in time. The rules are run ahead (`forecast`) without
the request and with it: who leaves early enough without it has to with it, too, and who does not,
though it was promised, may leave no later, until the moment is past: what is lost bars nobody. What
is early enough goes by what was learned of forecasts (`View.slip`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf

import numpy as np

from diffusion_edge.routing.cost import Bools, Counts, Floats
from diffusion_edge.routing.finish import KEPT, Ask, Forecasts, Tables
from diffusion_edge.routing.kept import Kept
from diffusion_edge.view import StageStatus, View

ARRIVALS = 6
"""For which it is known what a stage can take, until all are gone that could be made late."""

ANY = np.iinfo(np.int64).max

ROUNDING_S = 1e-6
"""Sums of the same seconds in other orders differ by less."""


@dataclass(frozen=True, eq=False)
class Harmless:
    """arrives_s: (A,), from 0, in seconds from now; below 0 where nobody was promised to be in
    time. most: by the number of an arrival, the steps that a request can take here which arrives
    then, with nobody made late; found when it is first asked for. Between two arrivals the smaller
    number counts, after the last one there is nobody left but whom its text delays."""

    arrives_s: Floats
    most: Callable[[int], int]


def harmless(status: StageStatus, ask: Ask, slip: float = 1.0) -> Harmless:
    """slip: as in `View`."""
    if all(image.latest_s == inf for image in status.held):
        return Harmless(np.full(ARRIVALS, -1.0), lambda _: ask.steps)
    forecasts = Forecasts(status, ask, ())
    without = forecasts.without
    latest_s = {
        i: max(ask.age_s + (image.latest_s - ask.age_s) / slip, without.done_s[i]) + ROUNDING_S
        for i, image in enumerate(without.images)
        if ask.age_s < image.latest_s < inf
    }
    end_s = max((without.done_s[i] - ask.age_s for i in latest_s), default=0.0)
    arrives_s = [max(end_s, 0.0) * (k / (ARRIVALS - 1)) ** 1.5 for k in range(ARRIVALS)]

    @cache
    def most(k: int) -> int:
        return _most(forecasts, ask.age_s + arrives_s[k], ask.steps, latest_s)

    return Harmless(np.array(arrives_s), most)


def _most(forecasts: Forecasts, arrives_s: float, steps: int, latest_s: Mapping[int, float]) -> int:
    """The more steps, the more are late: found by halving."""
    none, most = 0, steps
    while none < most:
        tried = most if most == steps else (none + most + 1) // 2
        if _all_in_time(forecasts, arrives_s, tried, latest_s):
            none = tried
        else:
            most = tried - 1
    return most


def _all_in_time(
    forecasts: Forecasts, arrives_s: float, steps: int, latest_s: Mapping[int, float]
) -> bool:
    run = forecasts.begun(arrives_s, steps)
    done_s = run.done_s
    while here := [at_s for i, at_s in latest_s.items() if done_s[i] == inf]:
        if run.now > min(here):
            return False
        run.round()
    return all(done_s[i] <= at_s for i, at_s in latest_s.items())


# ---------------------------------------------------------------------------- plans

_HARMLESS: Kept[Harmless] = Kept(KEPT)


def _kept(status: StageStatus, ask: Ask, slip: float) -> Harmless:
    """As tables are (`finish`)."""
    return _HARMLESS.of(status, (ask, slip), lambda: harmless(status, ask, slip))


Allows = Callable[[Counts, Floats, Counts], Bools]


def allows(
    names: Sequence[str], guide: Mapping[str, bool], images: int, tables: Tables, view: View
) -> Allows | None:
    """Whether stages take latents with nobody made late, as `Stations.allows` has it; None if they
    take all."""
    if not any(image.latest_s < inf for name in names for image in view.stages[name].held):
        return None

    def each(row: int) -> Harmless:
        name = names[row]
        return _kept(view.stages[name], tables.ask(name, guide[name], images), view.slip)

    return Allowing(len(names), each).allowed


UNKNOWN, UNASKED = -1, -2


class Allowing:
    """Which latents stages take. Of so many stages it is found out when it is asked for."""

    def __init__(self, stages: int, each: Callable[[int], Harmless]) -> None:
        self._each = cache(each)
        self._arrives_s = np.full((stages, ARRIVALS), inf)
        self._most = np.full((stages, ARRIVALS), UNASKED)

    def allowed(self, stage: Counts, comes_s: Floats, steps: Counts) -> Bools:
        """As `Stations.allows` has it."""
        for row in set(stage[self._most[stage, 0] == UNASKED].tolist()):
            self._arrives_s[row] = self._each(row).arrives_s
            self._most[row] = UNKNOWN
        after = (self._arrives_s[stage] < comes_s[..., None]).sum(axis=-1)
        before, then = np.maximum(after - 1, 0), np.minimum(after, ARRIVALS - 1)
        fine: Bools = steps <= np.minimum(self._of(stage, before), self._of(stage, then))
        return fine

    def _of(self, stage: Counts, arrival: Counts) -> Counts:
        cells, flat = stage * ARRIVALS + arrival, self._most.ravel()
        for cell in set(cells[flat[cells] < 0].tolist()):
            row, k = divmod(cell, ARRIVALS)
            flat[cell] = self._each(row).most(k)
        most: Counts = flat[cells]
        return most
