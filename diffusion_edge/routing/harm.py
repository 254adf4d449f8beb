"""Who would be late for a request: how much a stage can take with nobody else made late.

Of what a stage holds, and of what is on its way there, the view tells when it has to leave
(`Held.latest_s`), if it was promised to be in time. The rules are run ahead (`forecast`) without
the request and with it: who leaves early enough without it has to with it, too, and who does not,
though it was promised, may leave no later. What is early enough goes by what was learned of
forecasts (`View.slip`).
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


@dataclass(frozen=True)
class Harmless:
    """arrives_s: (A,), from 0, in seconds from now. most: (A,), steps that a request can take here
    which arrives then, with nobody made late; between two arrivals the smaller number counts, after
    the last one there is nobody left but whom its text delays."""

    arrives_s: Floats
    most: Counts


def harmless(status: StageStatus, ask: Ask, slip: float = 1.0) -> Harmless:
    """slip: as in `View`."""
    if all(image.latest_s == inf for image in status.held):
        return Harmless(np.full(ARRIVALS, -1.0), np.full(ARRIVALS, ask.steps))
    forecasts = Forecasts(status, ask, ())
    without = forecasts.without
    latest_s = {
        i: max(ask.age_s + (image.latest_s - ask.age_s) / slip, without.done_s[i]) + ROUNDING_S
        for i, image in enumerate(without.images)
        if image.latest_s < inf
    }
    end_s = max((without.done_s[i] - ask.age_s for i in latest_s), default=0.0)
    arrives_s = [max(end_s, 0.0) * (k / (ARRIVALS - 1)) ** 1.5 for k in range(ARRIVALS)]
    most = [_most(forecasts, ask.age_s + at_s, ask.steps, latest_s) for at_s in arrives_s]
    return Harmless(np.array(arrives_s), np.array(most))


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
    run = forecasts.run(arrives_s, steps)
    done_s = run.done_s
    while any(done_s[i] == inf for i in latest_s):
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

    @cache  # not all that compare plans ask who is late
    def known() -> tuple[Floats, Counts]:
        each = [_kept(view.stages[n], tables.ask(n, guide[n], images), view.slip) for n in names]
        return np.stack([one.arrives_s for one in each]), np.stack([one.most for one in each])

    def allowed(stage: Counts, comes_s: Floats, steps: Counts) -> Bools:
        arrives_s, most = known()
        after = (arrives_s[stage] < comes_s[..., None]).sum(axis=-1)
        before, then = np.maximum(after - 1, 0), np.minimum(after, ARRIVALS - 1)
        fine: Bools = steps <= np.minimum(most[stage, before], most[stage, then])
        return fine

    return allowed
