"""The parts of the benchmark of the router, each a few runs against the server that a ledger keeps.

Arms take turns on the same arrivals, captions and seeds, each from a quiet server on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_edge.bench.open_loop import Bisection
from diffusion_edge.bench.routing import split
from diffusion_edge.bench.routing.foretold import (
    all_plans,
    best_fixed,
    highest_rate,
    unit_arrivals,
    unloaded_s,
)
from diffusion_edge.bench.routing.live import SETTLE_S, Wanted, idle_view
from diffusion_edge.bench.routing.offline import most_in_time
from diffusion_edge.bench.routing.records import PARTS, Arm, Part, Ran, together
from diffusion_edge.bench.routing.runs import START_S, Opens, Runs, Tell, serving
from diffusion_edge.bench.timing import turned
from diffusion_edge.errors import EdgeError
from diffusion_edge.plan import Plan
from diffusion_edge.view import View

SHARE = 0.95
"""Of deadlines that C meets."""
STEADY = 0.75
"""Times C, where arms are compared."""
ELASTIC = Arm("elastic", {"policy": "elastic"})
EARLIEST = Arm("earliest", {"policy": "earliest"})
IN_TURN = Arm("in-turn", {"policy": "in-turn"})
BURSTS = tuple(Arm(f"elastic, late: {late}", {"late": late}) for late in ("serve", "refuse"))
LINKS = {"links as measured": True, "links as stated": False}
"""What `elastic` goes by, and the config's `measure_links`."""


@dataclass(frozen=True)
class Size:
    """How much is sent.

    search: arrivals of a probe for C. precision: lowest rate that failed over the highest that
    held, at most; probes: at most. steady: rounds, and arrivals of each; fixed: plans. over: times
    C, and arrivals at each. bursts: requests at once, and how often. forecast: arrivals by times C.
    links: as steady. split: requests at once on views, and splits that are tried. decisions: views.
    """

    search: int = 160
    precision: float = 1.05
    probes: int = 6
    steady: tuple[int, int] = (4, 100)
    fixed: int = 5
    over: tuple[float, ...] = (1.0, 1.2, 1.6, 2.0)
    over_arrivals: int = 160
    burst: int = 30
    bursts: int = 4
    forecast: Mapping[float, int] = field(
        default_factory=lambda: {0.2: 50, 0.4: 60, 0.6: 80, 0.9: 80}
    )
    links: tuple[int, int] = (2, 100)
    split: tuple[int, int] = (split.COUNT, split.TRIES)
    decisions: int = 200


FULL = Size()
SHORT = Size(
    search=20,
    precision=1.3,
    probes=3,
    steady=(2, 20),
    fixed=1,
    over=(1.2, 2.0),
    over_arrivals=20,
    burst=6,
    bursts=1,
    forecast={0.4: 20},
    links=(1, 20),
    split=(20, 40),
    decisions=8,
)


@dataclass(frozen=True)
class Task:
    """bound: of a plan's quality, by models. floor: of all requests. links: of the server in the
    part of that name. in_turn: the stages that have the floor alone."""

    bound: Callable[[Plan], float]
    floor: float
    links: Sequence[Mapping[str, Any]]
    size: Size
    steps: int
    seed: int
    parts: tuple[Part, ...] = PARTS
    in_turn: tuple[str, ...] = ("cloud", "edge")


@dataclass(frozen=True)
class Capacity:
    """C, the highest rate at which `in-turn` held, and the lowest at which it did not; by probe.
    guess: what the rules run ahead say."""

    per_s: float
    fails_per_s: float | None
    guess_per_s: float
    runs: tuple[Ran, ...]


@dataclass(frozen=True)
class Found:
    """By part; what was not asked for is empty. burst: requests at once; bound: how many of them an
    offline search gets in time, 0 where it was not asked."""

    wanted: Wanted
    unloaded_s: Mapping[str, float]
    capacity: Capacity
    steady: tuple[Ran, ...] = ()
    overload: tuple[Ran, ...] = ()
    bursts: tuple[Ran, ...] = ()
    burst: int = 0
    bound: int = 0
    forecast: tuple[Ran, ...] = ()
    links: tuple[Ran, ...] = ()


async def measure(task: Task, opens: Opens, ledger: Path, settings: Any, tell: Tell) -> Found:
    """settings: what the ledger's entries depend on. `tell` gets a line before every run."""
    async with serving(opens, task.steps, tell) as server:
        runs = Runs(server, ledger, settings, tell)
        bench = Bench(task, runs, await runs.planned(task.steps))
        tell(f"all parts together take about {sum(bench.seconds().values()) / 60:.0f} minutes")
        return await bench.found()


class Bench:
    """All parts, one after the other. planned: what /v1/plan says of the quiet server."""

    def __init__(self, task: Task, runs: Runs, planned: Mapping[str, Any]) -> None:
        self._task, self._runs = task, runs
        self.view = idle_view(planned)
        anyhow = Wanted(task.steps, 60.0, task.floor)
        self.unloaded_s = {name: unloaded_s(name, anyhow, self.view) for name in self.view.stages}
        slowest_s = max(self.unloaded_s[name] for name in task.in_turn)
        self.wanted = Wanted(task.steps, 2 * slowest_s, task.floor)
        many = unit_arrivals(400, f"{task.seed} guess")
        self.guess = highest_rate(task.in_turn, many, SHARE, self.wanted, self.view)

    async def found(self) -> Found:
        """Raises EdgeError if no rate holds."""
        size, asked = self._task.size, self._task.parts
        capacity = await self._capacity()
        at = capacity.per_s
        return Found(
            wanted=self.wanted,
            unloaded_s=self.unloaded_s,
            capacity=capacity,
            steady=await self._steady(at) if "steady" in asked else (),
            overload=await self._at("overload", at, dict.fromkeys(size.over, size.over_arrivals)),
            bursts=await self._bursts() if "burst" in asked else (),
            burst=size.burst,
            bound=self._most_at_once() if "burst" in asked else 0,
            forecast=await self._at("forecast", at, size.forecast),
            links=await self._links(at) if "links" in asked else (),
        )

    def seconds(self) -> dict[Part, float]:
        """What each part is expected to take, the server's start in the first."""
        size, rate = self._task.size, self.guess
        rounds, arrivals = size.steady
        arms = 3 + size.fixed
        after_s = 2 * self.wanted.deadline_s + 2 * SETTLE_S
        burst_s = size.burst / self.guess + after_s
        over = dict.fromkeys(size.over, size.over_arrivals)
        sums: dict[Part, float] = {
            "capacity": size.probes * (size.search / rate + after_s) + START_S,
            "steady": rounds * arms * (arrivals / STEADY / rate + after_s),
            "overload": sum(count / at / rate + after_s for at, count in over.items()),
            "burst": size.bursts * len(BURSTS) * burst_s,
            "forecast": sum(count / at / rate + after_s for at, count in size.forecast.items()),
            "links": 2 * size.links[0] * (size.links[1] / STEADY / rate + after_s + START_S),
        }
        return {part: sums[part] for part in sums if part in ("capacity", *self._task.parts)}

    # ------------------------------------------------------------------ the parts

    async def _capacity(self) -> Capacity:
        size = self._task.size
        search = Bisection(0.5 * self.guess, 1.6 * self.guess)
        unit = unit_arrivals(size.search, f"{self._task.seed} capacity")
        runs: list[Ran] = []
        while len(runs) < size.probes and not _near(search, size.precision):
            due = [at / search.rate for at in unit]
            runs.append(await self._run("capacity", IN_TURN, due, search.rate))
            search = search.after(runs[-1].in_time >= SHARE)
        if search.holds is None:
            raise EdgeError(
                f"in-turn meets less than {SHARE:.0%} of deadlines at {search.fails:.3g} a second, "
                f"and at every rate above that was tried; {self.guess:.3g} a second was foretold"
            )
        return Capacity(search.holds, search.fails, self.guess, tuple(runs))

    async def _steady(self, capacity: float) -> tuple[Ran, ...]:
        rate = STEADY * capacity
        rounds, arrivals = self._task.size.steady
        fixed = self._best_fixed([at / rate for at in self._unit("steady", arrivals, 0)])
        arms = [ELASTIC, EARLIEST, IN_TURN, *fixed]
        return await self._in_turns("steady", arms, rate, rounds, arrivals)

    def _best_fixed(self, due: Sequence[float]) -> list[Arm]:
        """Of all plans above the floor those that the rules, run ahead over the first round's
        arrivals, rank best."""
        best = best_fixed(self._good(), due, self.wanted, self.view, self._task.size.fixed)
        return [Arm(str(plan), {"plan": str(plan)}) for plan in best]

    def _good(self) -> list[Plan]:
        """All plans above the floor."""
        return [
            plan
            for plan in all_plans(self.view, self._task.steps)
            if self._task.bound(models_of(plan, self.view)) >= self._task.floor
        ]

    async def _at(
        self, part: Part, capacity: float, arrivals: Mapping[float, int]
    ) -> tuple[Ran, ...]:
        """`elastic` at some rates, by times C."""
        if part not in self._task.parts:
            return ()
        found = []
        for times, count in arrivals.items():
            rate = times * capacity
            due = [at / rate for at in self._unit(part, count, 0)]
            found.append(await self._run(part, ELASTIC, due, rate))
        return tuple(found)

    async def _bursts(self) -> tuple[Ran, ...]:
        due = [0.0] * self._task.size.burst
        rounds = self._task.size.bursts
        runs = [
            [await self._run("burst", arm, due, 0.0, turn) for arm in turned(BURSTS, turn)]
            for turn in range(rounds)
        ]
        return _by_arm([arm.name for arm in BURSTS], runs)

    def _most_at_once(self) -> int:
        return most_in_time(self._task.size.burst, self._good(), self.wanted, self.view)

    async def _links(self, capacity: float) -> tuple[Ran, ...]:
        links = list(self._task.links)
        arms = [
            Arm(name, ELASTIC.options, {"links": links, "measure_links": measured})
            for name, measured in LINKS.items()
        ]
        return await self._in_turns("links", arms, STEADY * capacity, *self._task.size.links)

    async def _in_turns(
        self, part: Part, arms: Sequence[Arm], rate: float, rounds: int, arrivals: int
    ) -> tuple[Ran, ...]:
        """The same arrivals for every arm, others in every round."""
        runs = []
        for turn in range(rounds):
            due = [at / rate for at in self._unit(part, arrivals, turn)]
            runs.append([await self._run(part, arm, due, rate, turn) for arm in turned(arms, turn)])
        return _by_arm([arm.name for arm in arms], runs)

    async def _run(
        self, part: Part, arm: Arm, due: Sequence[float], rate: float, turn: int = 0
    ) -> Ran:
        seed = self._task.seed + 1000 * turn
        return await self._runs.of(part, arm, due, rate, self.wanted, seed, turn)

    def _unit(self, part: Part, count: int, turn: int) -> list[float]:
        return unit_arrivals(count, f"{self._task.seed} {part} {turn}")


def _near(search: Bisection, precision: float) -> bool:
    if search.holds is None or search.fails is None:
        return False
    return search.fails <= precision * search.holds


def _by_arm(names: Sequence[str], rounds: Sequence[Sequence[Ran]]) -> tuple[Ran, ...]:
    """All rounds of each arm together."""
    every = [ran for runs in rounds for ran in runs]
    return tuple(together(tuple(ran for ran in every if ran.arm == name)) for name in names)


def models_of(plan: Plan, view: View) -> Plan:
    """As a quality table knows it."""
    return Plan.of(tuple((view.stages[span.stage].model, span.steps) for span in plan.spans))
