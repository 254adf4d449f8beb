"""The operations of `kernels` against the eager ones of stock libraries, on a CPU.

Equality comes first: a result must be as near to float64 as twice the eager operation's. Arms take
turns; what is told is the thread's own CPU time, so that others on the machine do not count.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import geometric_mean
from typing import Any

import torch

from diffusion_edge.bench.eager import EAGER, Args, allowed, error, outcome, wide
from diffusion_edge.bench.report import NOT_MEASURED, Machine, machine, seconds, versions
from diffusion_edge.bench.timing import Row, Timed, check_equal, interleaved, rows
from diffusion_edge.kernels.operations import OPERATIONS
from diffusion_edge.kernels.registry import REFERENCE, Operation, case_of
from diffusion_edge.markdown import listed, marks, section

MARKS = marks("diffusion-edge bench kernels")
EAGER_ARM = "eager"
ONCE_S = 0.02
"""An arm is called so often in a round that it takes about this long."""


@dataclass(frozen=True)
class Work:
    """An operation on arguments of some size."""

    operation: str
    size: str
    make: Callable[[], Args]


@dataclass(frozen=True)
class Measured:
    """rows: eager, and the chosen implementation where that is not the reference. refused: by
    every other implementation, why not."""

    operation: str
    size: str
    rows: tuple[Row, ...]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    command: str
    measured: str
    rounds: int
    machine: Machine
    versions: Mapping[str, str]
    works: tuple[Measured, ...]

    @property
    def overall(self) -> float | None:
        """Geometric mean of all arms that are not eager: times as fast."""
        ratios = [work.rows[-1].ratio for work in self.works if len(work.rows) > 1]
        return geometric_mean(ratios) if ratios else None

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"overall": self.overall}


# ---------------------------------------------------------------------------- the work


def _norm(batch: int, channels: int, edge: int, last: bool = False) -> Args:
    x = torch.randn(batch, channels, edge, edge)
    x = x.to(memory_format=torch.channels_last) if last else x
    return x, torch.randn(channels), torch.randn(channels), 32, 1e-6


def _gated(batch: int, tokens: int, width: int) -> Args:
    gate, scale, shift = torch.randn(batch, 3, width).chunk(3, dim=1)
    x, y = torch.randn(2, batch, tokens, width)
    return x, y, gate, scale, shift, 1e-6, False


def _heads(batch: int, tokens: int, heads: int, size: int) -> Args:
    angles = torch.rand(tokens, size // 2)
    query, key = torch.randn(2, batch, tokens, heads, size)
    return query, key, torch.randn(size), torch.randn(size), angles.cos(), angles.sin(), 1e-6


def _step(batch: int, channels: int, edge: int, history: int) -> Args:
    shape = (batch, channels, edge, edge)
    weights = torch.randn(batch, 1 + history, 3 + history)
    olds = [torch.randn(shape) for _ in range(history)]
    doubled = torch.randn(2 * batch, *shape[1:])
    return torch.randn(shape), weights, doubled, torch.rand(batch) * 8, None, olds


def _levels(channels: int, edge: int) -> Args:
    shape = (1, channels, edge, edge)
    return torch.randint(-127, 128, shape, dtype=torch.int8), torch.rand(channels)


def _images(edge: int, last: bool = False) -> Args:
    x = torch.randn(1, 3, edge, edge)
    return (x.to(memory_format=torch.channels_last) if last else x,)


WORKS = (
    Work("group_norm_silu", "2 x 320 x 64 x 64", lambda: _norm(2, 320, 64)),
    Work("group_norm_silu", "1 x 128 x 256 x 256", lambda: _norm(1, 128, 256)),
    Work("group_norm_silu", "1 x 128 x 256 x 256, NHWC", lambda: _norm(1, 128, 256, last=True)),
    Work("gated_norm", "8 x 64 x 384", lambda: _gated(8, 64, 384)),
    Work("gated_norm", "2 x 4096 x 1152", lambda: _gated(2, 4096, 1152)),
    Work("qk_norm_rotary", "2 x 64 x 8 x 64", lambda: _heads(2, 64, 8, 64)),
    Work("qk_norm_rotary", "1 x 1536 x 24 x 128", lambda: _heads(1, 1536, 24, 128)),
    Work("geglu", "2 x 256 x 2048", lambda: (torch.randn(2, 256, 2048),)),
    Work("geglu", "2 x 4096 x 2560", lambda: (torch.randn(2, 4096, 2560),)),
    Work("guided_step", "8 x 4 x 64 x 64, no history", lambda: _step(8, 4, 64, 0)),
    Work("guided_step", "8 x 4 x 64 x 64, 3 of history", lambda: _step(8, 4, 64, 3)),
    Work("quantise", "1 x 16 x 128 x 128", lambda: (torch.randn(1, 16, 128, 128),)),
    Work("dequantise", "1 x 16 x 128 x 128", lambda: _levels(16, 128)),
    Work("to_uint8", "1 x 3 x 256 x 256", lambda: _images(256)),
    Work("to_uint8", "1 x 3 x 1024 x 1024", lambda: _images(1024)),
    Work("to_uint8", "1 x 3 x 1024 x 1024, NHWC", lambda: _images(1024, last=True)),
)

# ---------------------------------------------------------------------------- measuring


@torch.inference_mode()
def measure(
    works: Sequence[Work], rounds: int, command: str, tell: Callable[[str], None]
) -> Report:
    """On one thread. Raises UnequalArm."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        found = []
        for work in works:
            tell(f"{work.operation}, {work.size}")
            found.append(_measured(work, rounds))
    finally:
        torch.set_num_threads(threads)
    today = datetime.date.today().isoformat()
    return Report(command, today, rounds, machine("cpu", 1), versions(), tuple(found))


def _measured(work: Work, rounds: int) -> Measured:
    operation = {each.name: each for each in OPERATIONS}[work.operation]
    args = work.make()
    choice = operation.choice(case_of(args))
    errors = _errors(operation, args)
    arms = {EAGER_ARM: _cpu_time(EAGER[operation.name], args)}
    if choice.taken.name != REFERENCE:
        arms[choice.taken.name] = _cpu_time(operation.run, args)
    taken = interleaved(arms, rounds, lambda _: None)
    names = dict(zip((EAGER_ARM, choice.taken.name), errors, strict=True))
    found = rows(taken, {name: names[name] for name in arms}, "float32")
    return Measured(work.operation, work.size, found, choice.refused)


def _cpu_time(run: Callable[..., Any], args: Args) -> Timed:
    """Of one call, the mean over as many as ONCE_S takes."""

    def timed(calls: int) -> float:
        began = time.thread_time()
        for _ in range(calls):
            run(*args)
        return (time.thread_time() - began) / calls

    timed(1)
    calls = max(1, int(ONCE_S / max(timed(1), 1e-6)))
    return lambda: timed(calls)


def _errors(operation: Operation, args: Args) -> tuple[float, float]:
    """Of the eager operation and of the chosen implementation, against float64. Raises
    UnequalArm."""
    eager = EAGER[operation.name]
    truth = outcome(eager, wide(args))
    theirs, ours = (error(outcome(run, args), truth) for run in (eager, operation.run))
    check_equal(operation.name, {"float64": ours}, allowed(theirs, torch.float32))
    return theirs, ours


# ---------------------------------------------------------------------------- the page


def page_lines(report: Report) -> Iterator[str]:
    at = report.machine
    yield (
        f"Measured on {report.measured} by `{report.command}`: CPU time of one thread, medians of "
        f"{report.rounds} rounds in which the arms took turns. {at.cpu}; {listed(report.versions)}."
    )
    yield from section("On a CPU, float32", HEAD, (_cells(work) for work in report.works))
    overall = report.overall
    mean = f"{overall:.2f}" if overall else NOT_MEASURED
    yield from ("", f"Times as fast, geometric mean of the rows that have a figure: {mean}.")
    names = dict.fromkeys(work.operation for work in report.works)
    on_gpu = ((name, NOT_MEASURED, NOT_MEASURED, NOT_MEASURED) for name in names)
    yield from section("On a GPU", ("operation", "eager", "triton", "times as fast"), on_gpu)


HEAD = ("operation", "size", "eager", "ours", "times as fast", "worst error, eager's, ours")


def _cells(work: Measured) -> tuple[str, ...]:
    eager, *ours = work.rows
    where = (work.operation, work.size, seconds(eager.median_s))
    if not ours:
        return *where, "as eager", "", f"{eager.error:.1e}"
    row = ours[0]
    low, high = row.ratios
    told = f"{row.ratio:.2f} ({low:.2f} to {high:.2f})"
    return *where, seconds(row.median_s), told, f"{eager.error:.1e}, {row.error:.1e}"


def summary(report: Report) -> Iterator[str]:
    for work in report.works:
        yield ", ".join(cell for cell in _cells(work) if cell)
