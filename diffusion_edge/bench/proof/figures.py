"""What the played cells come to: the goals, and `elastic` against every other policy. Pure.

A cell's figure is of the means over its seeds. What `elastic` is compared by is the reward
(`routing.reward`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from statistics import fmean, median

from diffusion_edge.bench.proof.grid import Cell
from diffusion_edge.bench.proof.play import Played, Result
from diffusion_edge.bench.proof.statistics import Interval, Paired, holm, median_interval, paired
from diffusion_edge.bench.report import NOT_MEASURED, reached

OURS, CLOUD, FIXED, ORACLE = "elastic", "cloud-only", "hindsight", "oracle"
LOSS = 0.02
"""Of quality, relative, that the upper end of its interval may have."""
FAST = "1:2:4"
SIGNIFICANT = 0.05
LEAST_MISSES = 1e-9


@dataclass(frozen=True)
class Found:
    """A cell and its runs, one by seed."""

    cell: Cell
    played: tuple[Played, ...]

    def of(self, policy: str) -> tuple[Result, ...]:
        return tuple(each.of(policy) for each in self.played)

    def has(self, *policies: str) -> bool:
        known = {each.policy for each in self.played[0].results}
        return known.issuperset(policies)

    def mean(self, policy: str, what: Callable[[Result], float | None]) -> float | None:
        """Over the seeds that have one."""
        values = [value for each in self.of(policy) if (value := what(each)) is not None]
        return fmean(values) if values else None

    def earned(self, policy: str) -> float:
        return fmean(each.earned for each in self.of(policy))

    def misses(self, policy: str) -> float:
        return fmean(each.misses for each in self.of(policy))

    @cached_property
    def most(self) -> float | None:
        """What nobody earns more than."""
        known = [each.most for each in self.played if each.most is not None]
        return fmean(known) if known else None

    @property
    def loss(self) -> float | None:
        """Of `elastic`'s quality, the upper end of its paired interval."""
        bound = self.mean(OURS, lambda each: each.bound)
        return None if bound is None else 1.0 - bound


def of_cells(cells: Sequence[Cell], played: Sequence[Played]) -> list[Found]:
    return [
        Found(cell, tuple(each for each in played if each.cell == cell.number)) for cell in cells
    ]


# ---------------------------------------------------------------------------- goals


@dataclass(frozen=True)
class Goal:
    """values: by cell, of those that have one. The figure is their median."""

    what: str
    least: float
    aim: float
    shown: str
    values: tuple[float, ...]

    @property
    def value(self) -> float | None:
        return median(self.values) if self.values else None

    @property
    def interval(self) -> Interval | None:
        known = [value for value in self.values if isfinite(value)]
        return median_interval(self.values) if len(known) > 1 else None

    @property
    def reached(self) -> str:
        return NOT_MEASURED if self.value is None else reached(self.value, self.least, self.aim)


def goals(found: Sequence[Found]) -> tuple[Goal, ...]:
    """Policies that were not played leave theirs without values."""

    def values(of: Callable[[Found], float | None], *needed: str) -> tuple[float, ...]:
        told = [of(each) for each in found if each.has(OURS, *needed)]
        return tuple(value for value in told if value is not None)

    return (
        Goal("share of the oracle's reward", 0.95, 0.98, "{:.1%}", values(share, ORACLE)),
        Goal(
            "deadline misses of the best fixed split over elastic's, cells with any misses",
            *(2.7, 5.0, "{:.2f}x"),
            values(fewer_misses, FIXED),
        ),
        Goal(
            "cloud seconds saved against cloud-only at no more than 2 % loss",
            *(0.66, 0.75, "{:.1%}"),
            values(cloud_saved, CLOUD),
        ),
        Goal(
            "latency of cloud-only over elastic's at no more than 2 % loss, 1:2:4 cells",
            *(2.1, 2.5, "{:.2f}x"),
            values(faster, CLOUD),
        ),
    )


def share(found: Found) -> float | None:
    """None where nothing can be earned."""
    best = found.earned(ORACLE)
    return found.earned(OURS) / best if best > 0.0 else None


def share_of_most(found: Found) -> float | None:
    most = found.most
    return found.earned(OURS) / most if most else None


def gap(found: Found) -> float | None:
    """How far the oracle may be below the best there is."""
    most = found.most
    return 1.0 - found.earned(ORACLE) / most if most else None


def fewer_misses(found: Found) -> float | None:
    """inf where only the fixed split has any, None where neither has."""
    ours, theirs = found.misses(OURS), found.misses(FIXED)
    if ours <= LEAST_MISSES:
        return inf if theirs > LEAST_MISSES else None
    return theirs / ours


def cloud_saved(found: Found) -> float | None:
    """None where the loss is larger, or nobody was served."""
    ours, theirs = (found.mean(name, lambda each: each.cloud_s) for name in (OURS, CLOUD))
    if not _as_good(found) or ours is None or not theirs:
        return None
    return 1.0 - ours / theirs


def faster(found: Found) -> float | None:
    ours, theirs = (found.mean(name, lambda each: each.latency_s) for name in (OURS, CLOUD))
    if found.cell.ratio != FAST or not _as_good(found) or not ours or theirs is None:
        return None
    return theirs / ours


def _as_good(found: Found) -> bool:
    return found.loss is not None and found.loss <= LOSS


# ---------------------------------------------------------------------------- against each


@dataclass(frozen=True)
class Against:
    """`elastic`'s reward less a policy's. overall: over the means of cells; p: of it, adjusted for
    the number of policies. worse: cells in which it is worse by more than the interval of its
    seeds; surely: those that are left when their number, over all policies, is corrected for."""

    policy: str
    overall: Paired
    p: float
    better: int
    worse: tuple[int, ...]
    surely: tuple[int, ...]


def against(found: Sequence[Found]) -> list[Against]:
    others = [each.policy for each in found[0].played[0].results if each.policy != OURS]
    overall = [paired([each.earned(OURS) - each.earned(name) for each in found]) for name in others]
    cells = {(name, k): _of_seeds(each, name) for name in others for k, each in enumerate(found)}
    adjusted = dict(zip(cells, holm([each.p for each in cells.values()]), strict=True))
    return [
        Against(
            policy=name,
            overall=every,
            p=p,
            better=sum(cells[name, k].interval[0] > 0.0 for k in range(len(found))),
            worse=tuple(
                each.cell.number for k, each in enumerate(found) if cells[name, k].interval[1] < 0.0
            ),
            surely=tuple(
                each.cell.number
                for k, each in enumerate(found)
                if cells[name, k].mean < 0.0 and adjusted[name, k] < SIGNIFICANT
            ),
        )
        for name, every, p in zip(others, overall, holm([e.p for e in overall]), strict=True)
    ]


def _of_seeds(found: Found, policy: str) -> Paired:
    pairs = zip(found.of(OURS), found.of(policy), strict=True)
    return paired([ours.earned - theirs.earned for ours, theirs in pairs])


# ---------------------------------------------------------------------------- every policy


@dataclass(frozen=True)
class Point:
    """A policy over cells, or over runs: shares of cloud-only's latency and cost; None without a
    picture, or without cloud-only. load: of what it was under, or None of several."""

    policy: str
    load: float | None
    misses: float
    earned: float
    latency: float | None
    cost: float | None
    quality: float | None


def points(found: Sequence[Found]) -> list[Point]:
    """One of each policy, over all cells."""
    names = [each.policy for each in found[0].played[0].results]
    return [_point(name, None, found) for name in names]


def by_load(found: Sequence[Found]) -> list[Point]:
    loads = sorted({each.cell.load for each in found})
    names = [each.policy for each in found[0].played[0].results]
    cells = {load: [each for each in found if each.cell.load == load] for load in loads}
    return [_point(name, load, cells[load]) for name in names for load in loads]


def _point(policy: str, load: float | None, found: Sequence[Found]) -> Point:
    qualities = [each.mean(policy, lambda one: one.quality) for each in found]
    return Point(
        policy=policy,
        load=load,
        misses=fmean(each.misses(policy) for each in found),
        earned=fmean(each.earned(policy) for each in found),
        latency=_over_cloud(policy, found, lambda each: each.latency_s),
        cost=_over_cloud(policy, found, lambda each: each.cost),
        quality=_mean(qualities),
    )


def _over_cloud(
    policy: str, found: Sequence[Found], what: Callable[[Result], float | None]
) -> float | None:
    """The mean over cells of a policy's over cloud-only's."""
    pairs = [(each.mean(policy, what), each.mean(CLOUD, what)) for each in found if each.has(CLOUD)]
    return _mean([ours / theirs if ours is not None and theirs else None for ours, theirs in pairs])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
