"""What the benchmark of the server found, as JSON and as a page. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from diffusion_edge.bench.report import (
    Machine,
    Target,
    averages,
    reached,
    seconds,
)
from diffusion_edge.markdown import listed, section, table

OURS = "diffusion-edge"
SHARE = 0.8
"""Of the stock pipeline's capacity, offered in the loads of a fixed rate."""
PATIENCE = 3.0
"""A rate is sustained while p95 stays below this many times the stock server's unloaded median."""

# ---------------------------------------------------------------------------- records


@dataclass(frozen=True)
class Unloaded:
    """An arm's latencies, one request after the other. p95_s: None of too few requests."""

    arm: str
    p50_s: float
    p95_s: float | None
    mean_s: float


@dataclass(frozen=True)
class Loaded:
    """An arm's latencies under a load of a fixed mean rate, of all rounds and by round.

    A failed request counts as longer than any. A percentile is None where it is a failed one's,
    and of too few requests.
    """

    kind: str
    arm: str
    rate_per_s: float
    sent: int
    failed: int
    p50_s: float | None
    p95_s: float | None
    p95_by_round_s: tuple[float | None, ...]


@dataclass(frozen=True)
class Sustained:
    """The highest rate that held in a bisection, None where no probe did, and the lowest that did
    not, None where every probe held."""

    arm: str
    holds_per_s: float | None
    fails_per_s: float | None

    def times(self, first: Sustained) -> float | None:
        """As high as the first arm's. None unless both were found: each between two probes."""
        if self.holds_per_s is None or first.holds_per_s is None:
            return None
        if self.fails_per_s is None or first.fails_per_s is None:
            return None
        return self.holds_per_s / first.holds_per_s


@dataclass(frozen=True)
class Overhead:
    """One request through the server against the bare engine: medians, and of the differences of
    pairs the median and the quartiles, None of too few pairs."""

    what: str
    served_s: float
    bare_s: float
    difference_s: float
    lowest_s: float | None
    highest_s: float | None


@dataclass(frozen=True)
class ServeReport:
    """The first arm of every part is the stock pipeline's.

    worst_levels: by arm, the largest difference of an 8-bit value from the first arm's pictures.
    limit_s: of p95, for a rate to be sustained.
    """

    command: str
    measured: str
    family: str
    stage: str
    mixed: str
    machine: Machine
    versions: dict[str, str]
    load_before: tuple[float, ...]
    load_after: tuple[float, ...]
    seconds: float
    rounds: int
    burst: int
    worst_levels: dict[str, int]
    unloaded: tuple[Unloaded, ...]
    capacity_per_s: float
    loads: tuple[Loaded, ...]
    limit_s: float
    sustained: tuple[Sustained, ...]
    overhead: Overhead

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"targets": [asdict(target) for target in targets(self)]}


# ---------------------------------------------------------------------------- targets


@dataclass(frozen=True)
class Cost:
    """A figure in seconds that is to be stayed below."""

    what: str
    most_s: float
    aim_s: float
    measured_s: float

    @property
    def reached(self) -> str:
        return reached(self.measured_s, self.most_s, self.aim_s)


def targets(report: ServeReport) -> tuple[Target | Cost, ...]:
    """Those of our server against the first arm."""
    ours = [row.arm for row in report.unloaded].index(OURS)
    poisson = [load for load in report.loads if load.kind == "poisson"]
    return (
        Target(
            f"p95 latency under Poisson load at {SHARE:.0%} of the stock pipeline's capacity",
            1 / 0.5,
            1 / 0.35,
            _ratio(poisson[0].p95_s, poisson[ours].p95_s),
            as_time=True,
        ),
        Target(
            f"rate sustained with p95 below {PATIENCE:g}x the unloaded latency",
            2.0,
            2.5,
            report.sustained[ours].times(report.sustained[0]),
        ),
        Cost(
            "HTTP, routing and Ray over the bare engine, one request, p50",
            0.030,
            0.015,
            report.overhead.difference_s,
        ),
    )


def _ratio(theirs: float | None, ours: float | None) -> float | None:
    return theirs / ours if theirs and ours else None


# ---------------------------------------------------------------------------- the page


def page_lines(report: ServeReport) -> Iterator[str]:
    """Markdown: where it ran, the targets, and a table for every part."""
    at = report.machine
    yield (
        f"Measured on {report.measured} by `{report.command}`: `{report.stage}` of "
        f"`{report.family}`, float32, {at.cpu}, {at.cores} cores, for servers and clients "
        f"together; {listed(report.versions)}. Load average before and after: "
        f"{averages(report.load_before, report.load_after)}. Requests take turns (solver, "
        f"steps/guidance): {report.mixed}. Alone and in a row the first arm makes "
        f"{report.capacity_per_s:.2f} a second, its capacity."
    )
    yield ""
    goals = ((each.what, *_figures(each), each.reached) for each in targets(report))
    yield from table(("target", "at least", "aim", "measured", ""), goals)
    alone = (_alone(row, report.worst_levels[row.arm]) for row in report.unloaded)
    yield from section("One request after the other", ALONE, alone)
    for kind, told in (
        ("poisson", "Poisson arrivals"),
        ("bursty", f"Bursts of {report.burst}, Poisson among themselves"),
    ):
        loads = [load for load in report.loads if load.kind == kind]
        title = (
            f"{told}, {loads[0].rate_per_s:.2f} a second, {report.rounds} x {report.seconds:g} s"
        )
        yield from section(title, LOADED, (_loaded(load, loads[0]) for load in loads))
    title = f"Rate sustained with p95 below {seconds(report.limit_s)}"
    sustained = (_sustained(found, report.sustained[0]) for found in report.sustained)
    yield from section(title, SUSTAINED, sustained)
    over = report.overhead
    title = f"One request alone through the server, {over.what}"
    spread = f"{_seconds(over.lowest_s)} to {_seconds(over.highest_s)}"
    rows = (
        ("through HTTP, the router and Ray, PNG included", FLOAT, seconds(over.served_s)),
        ("the bare engine, in one process", FLOAT, seconds(over.bare_s)),
        ("difference of pairs (quartiles)", FLOAT, f"{seconds(over.difference_s)} ({spread})"),
    )
    yield from section(title, ("", "precision", "p50"), rows)


FLOAT = "float32"
ALONE = ("arm", "precision", "p50", "p95", "mean", "largest difference of a picture")
LOADED = (
    *("arm", "precision", "sent", "failed", "p50", "p95"),
    *("by round", "p95, times the first"),
)
SUSTAINED = ("arm", "precision", "holds at", "fails at", "times the first")


def _alone(row: Unloaded, levels: int) -> tuple[str, ...]:
    shown = (seconds(row.p50_s), _seconds(row.p95_s), seconds(row.mean_s))
    return row.arm, FLOAT, *shown, f"{levels} of 255 levels"


def _loaded(load: Loaded, first: Loaded) -> tuple[str, ...]:
    rounds = ", ".join(map(_seconds, load.p95_by_round_s))
    shown = (str(load.sent), str(load.failed), _seconds(load.p50_s), _seconds(load.p95_s))
    return load.arm, FLOAT, *shown, rounds, _times(_ratio(load.p95_s, first.p95_s))


def _sustained(found: Sustained, first: Sustained) -> tuple[str, ...]:
    rates = _rate(found.holds_per_s), _rate(found.fails_per_s)
    return found.arm, FLOAT, *rates, _times(found.times(first))


def _figures(target: Target | Cost) -> tuple[str, str, str]:
    """Least, aim, measured."""
    if isinstance(target, Cost):
        return seconds(target.most_s), seconds(target.aim_s), seconds(target.measured_s)
    return target.shown(target.least), target.shown(target.aim), target.shown(target.ratio)


def _seconds(value: float | None) -> str:
    return "-" if value is None else seconds(value)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}/s"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def summary(report: ServeReport) -> Iterator[str]:
    """The targets in lines of text."""
    for target in targets(report):
        yield f"{target.what}: {_figures(target)[2]}, {target.reached}"
