"""The ways to run a family's denoisers against each other: the same latents first, then seconds of
CPU time on one thread, the ways in turns, so that who shares the machine hardly counts."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from diffusion_edge.bench.report import averages, machine, seconds, versions
from diffusion_edge.bench.timing import Row, Timed, check_equal, interleaved, rows
from diffusion_edge.engine.measure import probe
from diffusion_edge.engine.run import Trajectory, begin, step
from diffusion_edge.execution.check import final_error
from diffusion_edge.execution.eager import EAGER
from diffusion_edge.execution.way import running
from diffusion_edge.execution.ways import named
from diffusion_edge.families.base import Loaded
from diffusion_edge.families.card import Dtype, FamilyCard
from diffusion_edge.families.load import load_family
from diffusion_edge.families.pipeline import Loading
from diffusion_edge.markdown import listed, marks, section

COMMAND = "diffusion-edge bench execution"
MARKS = marks(COMMAND)
HEAD = ("model", "pixels", "rows", "way", "a step", "lowest to highest", "times as fast", "error")
PRECISION: Dtype = "float32"


@dataclass(frozen=True)
class Task:
    """stages, sizes (edges of squares in pixels) and row counts, all by all. ways: beside eager.
    passes: of a round. command: as the user would give it."""

    card: FamilyCard
    stages: Sequence[str]
    sizes: Sequence[int]
    counts: Sequence[int]
    ways: Sequence[str]
    rounds: int
    passes: int
    command: str


@dataclass(frozen=True)
class Measured:
    """rows: one for each way, eager first."""

    stage: str
    size: int
    count: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Report:
    """refused: by model, which ways cannot run it and why."""

    command: str
    lines: tuple[str, ...]
    measured: tuple[Measured, ...]
    refused: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(task: Task, tell: Callable[[str], None]) -> Report:
    """`tell` gets a line before every part. Raises UnequalArm before anything is timed."""
    torch.set_num_threads(1)
    before, found, refused = os.getloadavg(), list[Measured](), list[str]()
    for stage in task.stages:
        for size in task.sizes:
            tell(f"{stage}, {size} pixels")
            measured, reasons = _of_size(task, stage, size)
            found += measured
            refused += reasons
    at = machine("cpu", 1)
    return Report(
        task.command,
        (
            f"Measured on {datetime.datetime.now(datetime.UTC).date()} by `{task.command}`: "
            f"{task.card.name}, {PRECISION}, CPU time of the process, one thread, medians of "
            f"{task.rounds} rounds. {at.cpu}, {at.cores} cores; {listed(versions())}. Load average "
            f"before and after: {averages(before, os.getloadavg())}.",
        ),
        tuple(found),
        tuple(dict.fromkeys(refused)),
    )


def _of_size(task: Task, stage: str, size: int) -> tuple[list[Measured], list[str]]:
    eager = load_family(task.card, stage, Loading(dtype=PRECISION, device="cpu"))
    families, errors, refused = {EAGER.name: eager}, {EAGER.name: 0.0}, []
    for way in map(named, task.ways):
        reason = way.refuses(eager, [size], 1)
        if reason is not None:
            refused.append(f"{stage} by {way.name}: {reason}")
            continue
        own = running(eager, way, [size], 1)
        error, most = final_error(eager, own, size, task.card.defaults.solver)
        errors[way.name] = check_equal(way.name, {f"{stage}, {size} pixels": error}, most)
        families[way.name] = own
    start = begin(eager, probe(eager, size, task.card.defaults.solver))
    measured = [
        Measured(stage, size, count, _timed(task, families, errors, [start] * count))
        for count in task.counts
    ]
    return measured, refused


def _timed(
    task: Task, families: dict[str, Loaded], errors: dict[str, float], batch: list[Trajectory]
) -> tuple[Row, ...]:
    arms: dict[str, Timed] = {
        name: partial(_cpu_s, family, batch, task.passes) for name, family in families.items()
    }
    for arm in arms.values():
        arm()
    return rows(interleaved(arms, task.rounds, lambda _: None), errors, PRECISION)


def _cpu_s(family: Loaded, batch: list[Trajectory], passes: int) -> float:
    """Of one step, by all threads of this process."""
    began = time.process_time()
    for _ in range(passes):
        step(family, batch)
    return (time.process_time() - began) / passes


def page_lines(report: Report) -> Iterator[str]:
    yield from report.lines
    cells = (_cells(each, row) for each in report.measured for row in each.rows)
    yield from section("A step, by model, size, rows and way", HEAD, cells)
    for reason in report.refused:
        yield from ("", f"Not measured: {reason}.")


def _cells(each: Measured, row: Row) -> tuple[str, ...]:
    return (
        f"`{each.stage}`",
        str(each.size),
        str(each.count),
        row.arm,
        seconds(row.median_s),
        f"{seconds(row.lowest_s)} to {seconds(row.highest_s)}",
        f"{row.ratio:.2f} ({row.ratios[0]:.2f} to {row.ratios[1]:.2f})",
        f"{row.error:.1e}",
    )
