"""The cells, played by every policy: one entry of a ledger for every cell and seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_edge.bench import simulated
from diffusion_edge.bench.proof.cells import capacity, scenario_of, settings_of
from diffusion_edge.bench.proof.grid import REQUESTS, SEEDS, Cell
from diffusion_edge.plan import TIERS, Plan
from diffusion_edge.profile.ledger import open_ledger
from diffusion_edge.routing import cost
from diffusion_edge.routing.policies import RULES
from diffusion_edge.sim.build import Asks, world
from diffusion_edge.sim.foresight import idle_view
from diffusion_edge.sim.scenario import FORESEE

POLICIES = (*(name for name in RULES if name != "fixed"), *FORESEE)
PLAYS = 60
"""Runs of an oracle, of one cell and seed."""
CLOUD = TIERS[-1]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """signals: a recording for policies that choose again."""

    cells: tuple[Cell, ...]
    policies: tuple[str, ...] = POLICIES
    seeds: tuple[int, ...] = SEEDS
    requests: int = REQUESTS
    plays: int = PLAYS
    signals: str | None = None

    @property
    def parts(self) -> list[tuple[Cell, int]]:
        return [(cell, seed) for cell in self.cells for seed in self.seeds]


@dataclass(frozen=True)
class Result:
    """Of one policy in one cell with one seed. earned: by a request in the mean; in_time, served:
    shares of all. The rest are means over those that were served, and None where none was:
    latency_s; p95_s, no mean; cost; cloud_s, seconds by which a picture adds to what the cloud has
    to do; quality, and bound, the lower end of its paired 95 % interval, both over the reference's.
    cpu_s: of the run."""

    policy: str
    earned: float
    in_time: float
    served: float
    latency_s: float | None
    p95_s: float | None
    cost: float | None
    cloud_s: float | None
    quality: float | None
    bound: float | None
    cpu_s: float

    @property
    def misses(self) -> float:
        """Share of all requests."""
        return 1.0 - self.in_time


@dataclass(frozen=True)
class Played:
    """A cell with one seed. rate: requests a second. most: what nobody earns more than, by a
    request in the mean."""

    cell: int
    seed: int
    rate: float
    most: float | None
    results: tuple[Result, ...]

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Played:
        results = tuple(Result(**each) for each in entry["results"])
        return cls(**(dict(entry) | {"results": results}))

    def of(self, policy: str) -> Result:
        return next(each for each in self.results if each.policy == policy)


# ---------------------------------------------------------------------------- all of them


def measured(
    task: Task, ledger: Path, settings: Mapping[str, Any], workers: int, tell: Tell
) -> list[Played]:
    """In the order of the task's parts. settings: what entries depend on beside the task; the
    ledger goes on where all of it is the same."""
    told = {"task": asdict(task), **settings}
    kept, entries = open_ledger(ledger, told)
    known = {(each["cell"], each["seed"]): Played.read(each) for each in entries}
    missing = [(c, s) for c, s in task.parts if (c.number, s) not in known]
    tell(f"{len(task.parts)} cells times seeds, {len(missing)} of them are to be played")
    for played in _played(task, missing, workers):
        kept.append(asdict(played))
        known[played.cell, played.seed] = played
        tell(f"cell {played.cell}, seed {played.seed}: {_took_s(played):.0f} s of CPU time")
    return [known[cell.number, seed] for cell, seed in task.parts]


def _took_s(played: Played) -> float:
    return sum(each.cpu_s for each in played.results)


def _played(task: Task, parts: Sequence[tuple[Cell, int]], workers: int) -> Iterator[Played]:
    """As they are done."""
    if workers == 1:
        yield from (play(task, *part) for part in parts)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting: list[Future[Played]] = [pool.submit(play, task, *part) for part in parts]
        try:
            yield from (each.result() for each in as_completed(waiting))
        finally:
            pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------------------- one of them


def play(task: Task, cell: Cell, seed: int) -> Played:
    settings = settings_of(cell)
    family = simulated.family_of(settings)
    rate = cell.load * capacity(cell, settings, family)
    asked = scenario_of(cell, rate, task.policies, [seed], task.requests)
    scenario = asked.model_copy(update={"signals": task.signals})
    runs = list(simulated.runs(scenario, settings, family, _silent, task.plays))
    asks = Asks(scenario, settings, family, world(scenario, settings, family, seed), seed)
    cloud_s = partial(_cloud_s, asks)
    most = next((run.most for run in runs if run.most is not None), None)
    return Played(cell.number, seed, rate, most, tuple(_result(run, cloud_s) for run in runs))


def _silent(_: int) -> None:
    pass


def _result(run: simulated.Run, cloud_s: Callable[[Mapping[str, float]], float]) -> Result:
    figures, told = run.figures, run.told
    served, some = told.served(), bool(figures.served)
    return Result(
        policy=figures.policy,
        earned=run.earned,
        in_time=figures.in_time / figures.requests,
        served=figures.served / figures.requests,
        latency_s=figures.latency_s["mean"],
        p95_s=figures.latency_s["p95"],
        cost=figures.cost,
        cloud_s=cloud_s(figures.plans) if some else None,
        quality=float(np.array(told.quality)[served].mean()) if some else None,
        bound=float(np.array(told.quality_bound)[served].mean()) if some else None,
        cpu_s=run.cpu_s,
    )


def _cloud_s(asks: Asks, plans: Mapping[str, float]) -> float:
    """plans: their shares. What a picture adds to what the cloud has to do, in the mean."""
    _, request, group = next(asks.by("elastic"))
    view = idle_view(asks.world, group, request)
    priced = replace(view, price_per_s={tier: float(tier == CLOUD) for tier in TIERS})
    parsed = {Plan.parse(text, reason=""): share for text, share in plans.items()}
    return sum(
        share * cost.of_plan(plan, request.in_steps(plan.steps), priced)
        for plan, share in parsed.items()
    )
