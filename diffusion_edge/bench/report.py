"""What a benchmark found, as JSON and as a page. No torch at import."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from diffusion_edge import cpu
from diffusion_edge.bench.timing import Row
from diffusion_edge.markdown import listed, marks, section, table

ENGINE_MARKS, SERVE_MARKS = map(
    marks, ("diffusion-edge bench engine", "diffusion-edge bench serve")
)
NOT_MEASURED = "not measured"
LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "ray")

# ---------------------------------------------------------------------------- records


@dataclass(frozen=True)
class Machine:
    """Where it ran: processor, cores that the process may use and those there are, threads that a
    torch operation uses, and the device of the models."""

    cpu: str
    cores_used: int
    cores: int
    torch_threads: int
    device: str


@dataclass(frozen=True)
class Group:
    """Arms that did the same work. what: the work, in a sentence."""

    key: str
    what: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Report:
    """load: the machine's averages over 1, 5 and 15 minutes, before and after."""

    command: str
    measured: str
    family: str
    stage: str
    pipeline: str
    precision: str
    rounds: int
    machine: Machine
    versions: dict[str, str]
    load_before: tuple[float, ...]
    load_after: tuple[float, ...]
    groups: tuple[Group, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"targets": [asdict(target) for target in targets(self)]}


def machine(device: str, torch_threads: int) -> Machine:
    return Machine(
        cpu=cpu.model(),
        cores_used=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        cores=os.cpu_count() or 0,
        torch_threads=torch_threads,
        device=device,
    )


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def averages(before: Sequence[float], after: Sequence[float]) -> str:
    """Load averages over 1, 5 and 15 minutes, in words."""
    return " to ".join(" / ".join(f"{average:.2f}" for average in load) for load in (before, after))


# ---------------------------------------------------------------------------- targets


@dataclass(frozen=True)
class Target:
    """A figure to reach. `ratio`: measured, times as fast as the stock pipeline; None where it was
    not. `least` and `aim` in the same unit; `as_time` shows all three as shares of its seconds."""

    what: str
    least: float | None
    aim: float | None
    ratio: float | None
    as_time: bool = False

    def shown(self, value: float | None) -> str:
        if value is None:
            return NOT_MEASURED
        return f"{1 / value:.2f} of its time" if self.as_time else f"{value:.2f}x"

    @property
    def reached(self) -> str:
        if self.ratio is None or self.least is None or self.aim is None:
            return NOT_MEASURED
        return reached(self.ratio, self.least, self.aim)


def reached(value: float, least: float, aim: float) -> str:
    """Larger is better, unless `least` is above `aim`."""
    sign = 1 if least <= aim else -1
    if sign * value < sign * least:
        return "not reached"
    return "reached, the aim too" if sign * value >= sign * aim else "reached, the aim not"


def targets(report: Report) -> tuple[Target, ...]:
    """Those of the engine, from the rows that stand for them."""
    from diffusion_edge.bench.arms import IN_FLIGHT
    from diffusion_edge.bench.solver_step import WHOLE

    found = {(group.key, row.arm): row.ratio for group in report.groups for row in group.rows}
    return (
        Target(
            "throughput, requests at mixed steps, solvers and guidance values",
            2.3,
            3.0,
            found.get(("mixed", IN_FLIGHT)),
        ),
        Target(
            "batched solver step, batch 8, mixed rows, against eight stock schedulers",
            8.0,
            15.0,
            found.get(("solver", WHOLE)),
        ),
        Target(
            "one request alone, batching on, engine against the bare pipeline",
            1.0,
            1.25,
            found.get(("alone", IN_FLIGHT)),
            as_time=True,
        ),
    )


# ---------------------------------------------------------------------------- the page


def page_lines(report: Report) -> Iterator[str]:
    """Markdown: where it ran, the targets, and a table for every group."""
    at = report.machine
    yield (
        f"Measured on {report.measured} by `{report.command}`: `{report.stage}` of "
        f"`{report.family}` against `{report.pipeline}`, {report.rounds} rounds. {at.cpu}, "
        f"{at.cores_used} of {at.cores} cores used, {at.torch_threads} torch thread(s), device "
        f"{at.device}; {listed(report.versions)}. Load average before and after: "
        f"{averages(report.load_before, report.load_after)}."
    )
    yield ""
    goals = (
        (each.what, *map(each.shown, (each.least, each.aim, each.ratio)), each.reached)
        for each in targets(report)
    )
    yield from table(("target", "at least", "aim", "measured", ""), goals)
    for group in report.groups:
        yield from section(group.what, HEAD, map(_cells, group.rows))
    yield from ("", f"On a GPU: {NOT_MEASURED}. In reduced precision: {NOT_MEASURED}.")


HEAD = ("arm", "precision", "median", "lowest to highest", "times as fast", "worst error")


def _cells(row: Row) -> tuple[str, ...]:
    low, high = row.ratios
    return (
        row.arm,
        row.precision,
        seconds(row.median_s),
        f"{seconds(row.lowest_s)} to {seconds(row.highest_s)}",
        f"{row.ratio:.2f} ({low:.2f} to {high:.2f})",
        f"{row.error:.1e}",
    )


def seconds(value: float) -> str:
    """With a unit that suits it."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{1e3 * value:.1f} ms" if value >= 1e-2 else f"{1e6 * value:.0f} µs"


def summary(report: Report) -> Iterator[str]:
    """The same in a few lines of text."""
    for group in report.groups:
        yield group.what
        for row in group.rows:
            yield (
                f"  {row.arm}, {row.precision}: {seconds(row.median_s)} "
                f"({seconds(row.lowest_s)} to {seconds(row.highest_s)}), "
                f"{row.ratio:.2f} times as fast, error {row.error:.1e}"
            )
    for target in targets(report):
        yield f"{target.what}: {target.shown(target.ratio)}, {target.reached}"
