"""What the played cells say, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from diffusion_edge.bench.proof import figures
from diffusion_edge.bench.proof.figures import FIXED, ORACLE, OURS, Found, Goal, Point
from diffusion_edge.bench.report import Machine
from diffusion_edge.markdown import listed, marks, section, table

COMMAND = "diffusion-edge bench proof"
MARKS = marks(COMMAND)
FAMILIES = ("shapes", "sdxl")


@dataclass(frozen=True)
class Report:
    """cpu_s: of all runs together. whole: whether it is all that was fixed beforehand, and no
    smaller form of it."""

    command: str
    measured: str
    machine: Machine
    versions: dict[str, str]
    whole: bool
    seeds: int
    requests: int
    plays: int
    cpu_s: float
    found: tuple[Found, ...]

    def as_json(self) -> dict[str, Any]:
        told = {
            name: getattr(self, name)
            for name in ("command", "measured", "versions", "whole", "seeds", "requests", "plays")
        }
        return told | {
            "cpu_s": round(self.cpu_s, 1),
            "machine": asdict(self.machine),
            "goals": [asdict(goal) | {"median": goal.value} for goal in figures.goals(self.found)],
            "against": [asdict(each) for each in figures.against(self.found)],
            "policies": [asdict(point) for point in figures.points(self.found)],
            "by_load": [asdict(point) for point in figures.by_load(self.found)],
            "cells": [asdict(each) for each in self.found],
        }


def page_lines(report: Report, plots: Sequence[Path] = ()) -> Iterator[str]:
    yield (
        f"Measured on {report.measured} by `{report.command}`: {len(report.found)} cells, "
        f"{report.seeds} seeds, {report.requests} requests each, {report.plays} plays of the "
        f"oracle; {report.cpu_s / 3600:.2f} hours of CPU time on {report.machine.cpu}; "
        f"{listed(report.versions)}."
    )
    if not report.whole:
        yield ("\n**A small form, to see that all works: no figure of it counts.**")
    yield from _goals(report)
    yield from _against(report.found)
    yield from _policies(report.found)
    yield ""
    yield from (f"![{plot.stem.replace('-', ' ')}]({plot.name})" for plot in plots)
    yield from _cells(report.found)


def summary(report: Report) -> Iterator[str]:
    yield from table(*_goal_table(report))


def apart(found: Sequence[Found]) -> dict[str, list[Found]]:
    """By whose seconds and bytes they have."""
    some = {name: [each for each in found if each.cell.family == name] for name in FAMILIES}
    return {name: cells for name, cells in some.items() if cells}


# ---------------------------------------------------------------------------- tables


GOALS = ("", "at least", "aim", "median, 95 %", "cells", "seconds of `shapes`", "of SDXL", "")


def _goals(report: Report) -> Iterator[str]:
    yield from section("Goals", *_goal_table(report))
    bounded = [each for each in report.found if each.has(ORACLE)]
    gaps = [gap for each in bounded if (gap := figures.gap(each)) is not None]
    if not gaps:
        return
    shares = [s for each in bounded if (s := figures.share_of_most(each)) is not None]
    yield ""
    yield (
        f"The oracle is {_percent(median(gaps))} below what nobody earns more than in the median "
        f"cell, and {_percent(max(gaps))} at most; `elastic` earns {_percent(median(shares))} of "
        "that bound in the median cell."
    )


def _goal_table(report: Report) -> tuple[tuple[str, ...], Iterator[tuple[str, ...]]]:
    some = apart(report.found)
    columns = [figures.goals(some.get(family, [])) for family in FAMILIES]
    goals = zip(figures.goals(report.found), *columns, strict=True)
    return GOALS, (_goal_row(*each) for each in goals)


def _goal_row(goal: Goal, *columns: Goal) -> tuple[str, ...]:
    least, aim = goal.shown.format(goal.least), goal.shown.format(goal.aim)
    medians = (_value(each) for each in columns)
    told = f"{_value(goal)}{_interval(goal)}"
    return goal.what, least, aim, told, f"{len(goal.values)}", *medians, goal.reached


def _value(goal: Goal) -> str:
    if goal.value is None:
        return "-"
    return goal.shown.format(goal.value) if isfinite(goal.value) else "none left"


def _interval(goal: Goal) -> str:
    if goal.interval is None:
        return ""
    low, high = (goal.shown.format(end) for end in goal.interval)
    return f" ({low} to {high})"


AGAINST = (
    "`elastic` less",
    "reward, 95 %",
    "p, corrected",
    "cells better",
    "cells worse",
    "and corrected",
)


def _against(found: Sequence[Found]) -> Iterator[str]:
    rows = []
    for each in figures.against(found):
        low, high = each.overall.interval
        rows.append(
            (
                f"`{each.policy}`",
                f"{each.overall.mean:+.3f} ({low:+.3f} to {high:+.3f})",
                f"{each.p:.2g}",
                f"{each.better}",
                f"{len(each.worse)}",
                f"{len(each.surely)}",
            )
        )
    yield from section("Reward of `elastic` against every other policy", AGAINST, rows)
    yield ""
    yield (
        "The interval is over the means of cells. A cell is better or worse where its seeds' "
        "paired 95 % interval is above or below 0; *corrected*: for the number of cells and "
        "policies (Holm)."
    )


POLICIES = ("policy", "reward", "misses", "latency", "cost", "quality")


def _policies(found: Sequence[Found]) -> Iterator[str]:
    for family, some in apart(found).items():
        title = f"Every policy, means over the cells of `{family}`"
        yield from section(title, POLICIES, map(_policy_row, figures.points(some)))
    yield from ("", "Latency and cost are over those of cloud-only in the same cells.")


def _policy_row(point: Point) -> tuple[str, ...]:
    return (
        f"`{point.policy}`",
        f"{point.earned:.3f}",
        _percent(point.misses),
        _of(point.latency, "{:.2f}"),
        _of(point.cost, "{:.2f}"),
        _of(point.quality, "{:.3f}"),
    )


CELLS = (
    *("cell", "seconds, ratio", "links", "load, arrivals", "deadline, floor, late"),
    *("`elastic`", "best other", "oracle", "at most", "misses, of `hindsight`"),
    *("cloud saved", "loss"),
)


def _cells(found: Sequence[Found]) -> Iterator[str]:
    yield from section("All cells: rewards, and what else", CELLS, map(_cell_row, found))


def _cell_row(found: Found) -> tuple[str, ...]:
    cell = found.cell
    names = [each.policy for each in found.played[0].results]
    others = {name: found.earned(name) for name in names if name not in (OURS, ORACLE)}
    best = max(others, key=others.__getitem__, default=None)
    fixed = _percent(found.misses(FIXED)) if found.has(FIXED) else "-"
    saved = figures.cloud_saved(found) if found.has(figures.CLOUD) else None
    rtts = "/".join(f"{1000 * s:g}" for s in (cell.near_rtt_s, cell.far_rtt_s, cell.wire_rtt_s))
    return (
        f"{cell.number}",
        f"{cell.family}, {cell.ratio}",
        f"{cell.near}, {cell.far}, {cell.wire:g}; {rtts} ms",
        f"{cell.load:g}, {cell.arrivals}",
        f"{cell.patience:g}x, {cell.floor:g}, {cell.late}",
        f"{found.earned(OURS):.3f}",
        f"{others[best]:.3f} `{best}`" if best else "-",
        f"{found.earned(ORACLE):.3f}" if found.has(ORACLE) else "-",
        _of(found.most, "{:.3f}"),
        f"{_percent(found.misses(OURS))}, {fixed}",
        _of(saved, "{:.1%}"),
        _of(found.loss, "{:.1%}"),
    )


def _of(value: float | None, shown: str) -> str:
    return "-" if value is None else shown.format(value)


_percent: Callable[[float], str] = "{:.1%}".format
