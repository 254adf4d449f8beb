"""From runs of a scenario to what is drawn of them: the same plots as of the proof."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from diffusion_edge.bench.proof.figures import CLOUD, Point
from diffusion_edge.bench.simulated import Run
from diffusion_edge.sim.scenario import Scenario

MOST_EVENTS = 12
"""Of one timeline: a link that changes all the time is none."""


def points_of(asked: Scenario, found: Sequence[Run]) -> list[Point]:
    """One of each policy, over the seeds. The load is the rate that was asked for."""
    runs = {name: [run for run in found if run.figures.policy == name] for name in asked.policies}
    cloud = runs.get(CLOUD, [])
    return [
        Point(
            policy=name,
            load=asked.arrivals.rate,
            misses=1.0 - fmean(run.figures.in_time / run.figures.requests for run in own),
            earned=fmean(run.earned for run in own),
            latency=_over(_latency_s(own), _latency_s(cloud)),
            cost=_over(_cost(own), _cost(cloud)),
            quality=_mean([_quality(run) for run in own]),
        )
        for name, own in runs.items()
    ]


def _latency_s(runs: Sequence[Run]) -> float | None:
    return _mean([run.figures.latency_s["mean"] for run in runs])


def _cost(runs: Sequence[Run]) -> float | None:
    return _mean([run.figures.cost for run in runs])


def _quality(run: Run) -> float | None:
    served = run.told.served()
    return float(np.array(run.told.quality)[served].mean()) if served.any() else None


def _over(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def events(asked: Scenario) -> list[tuple[float, str]]:
    """Moments at which something happens, and what: faults, and steps of links."""
    told = [
        (fault.at_s, f"{fault.stage or ' - '.join(fault.between or ())} {fault.kind}")
        for fault in asked.faults
    ]
    told += [(fault.at_s + fault.for_s, f"{fault.kind} no more") for fault in asked.faults]
    for link in asked.links:
        told += [(at_s, "links change") for at_s in link.steps or () if at_s > 0.0]
    by_time: dict[float, list[str]] = {}
    for at_s, what in sorted(set(told)):
        by_time.setdefault(at_s, []).append(what)
    return [(at_s, ", ".join(whats)) for at_s, whats in by_time.items()][:MOST_EVENTS]
