"""What runs come to: shares, ratios, errors, and the goals that they are held against. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from diffusion_edge.bench import paired
from diffusion_edge.bench.answered import Answer
from diffusion_edge.bench.open_loop import quantile
from diffusion_edge.bench.paired import Interval
from diffusion_edge.bench.report import NOT_MEASURED, reached
from diffusion_edge.bench.routing import split
from diffusion_edge.bench.routing.decision import REPLICAS, STEPS, Decisions
from diffusion_edge.bench.routing.parts import STEADY, Found
from diffusion_edge.bench.routing.records import MOST_OVERRUNS, Ran, overrun_share
from diffusion_edge.bench.routing.split import Split, over_best

REFUSED_S = 1.0
"""A refusal within so long is one at once."""
REFUSALS = ("queue_full", "no_plan", "cannot_be_in_time")
"""Codes of what is refused before any work."""


@dataclass(frozen=True)
class Goal:
    """A figure to reach. value: None where it was not measured; larger is better unless `least` is
    above `aim`. void: of runs whose stages could not keep their stated seconds."""

    what: str
    least: float
    aim: float
    value: float | None
    shown: str
    least_shown: str
    aim_shown: str
    void: float | None = None

    @property
    def reached(self) -> str:
        if self.value is None:
            return NOT_MEASURED
        if self.void is not None:
            return f"void: {100 * self.void:.1f} % overran"
        return reached(self.value, self.least, self.aim)


# ---------------------------------------------------------------------------- of one run


def goodput(ran: Ran) -> float:
    """Requests in time a second, while so many were offered."""
    return ran.rate_per_s * ran.in_time


def costs(ran: Ran) -> list[float | None]:
    """By request; None of one that was not answered."""
    return [each.cost if each.ok else None for each in ran.answers]


def mean_cost(ran: Ran) -> float | None:
    known = [cost for cost in costs(ran) if cost is not None]
    return fmean(known) if known else None


def in_time(ran: Ran) -> list[float]:
    return [float(each.in_time) for each in ran.answers]


def void(runs: Sequence[Ran]) -> float | None:
    """The worst share of overruns, if it is too high."""
    worst = max(map(overrun_share, runs), default=0.0)
    return worst if worst > MOST_OVERRUNS else None


# ---------------------------------------------------------------------------- forecasts


def errors(runs: Sequence[Ran], bare: bool = False) -> list[float]:
    """|actual - foretold| over foretold seconds, of all that were answered. bare: of the forecast
    alone, without what was learned of forecasts."""
    return [
        abs(each.seconds - foretold_s) / foretold_s
        for each in _told(runs)
        if each.seconds is not None
        and (foretold_s := each.predicted_s if bare else each.foretold_s)
    ]


def corrected(runs: Sequence[Ran]) -> float | None:
    """The share of answers whose foretold seconds are by what was learned."""
    learned = [float(each.predicted_50_s is not None) for each in _told(runs)]
    return fmean(learned) if learned else None


def covered(runs: Sequence[Ran]) -> list[float]:
    """1 where the actual seconds were at most the predicted 90 % quantile."""
    return [
        float(each.seconds <= each.predicted_90_s)
        for each in _told(runs)
        if each.seconds is not None and each.predicted_90_s is not None
    ]


def _told(runs: Sequence[Ran]) -> Iterator[Answer]:
    return (each for ran in runs for each in ran.answers if each.ok)


# ---------------------------------------------------------------------------- bursts


def refused_at_once(ran: Ran) -> int:
    """Requests that were refused before any work, with a time to come again."""
    return sum(
        each.outcome in REFUSALS and each.latency_s <= REFUSED_S and each.retry_after_s is not None
        for each in ran.answers
    )


def otherwise(ran: Ran, refuse: bool) -> int:
    """Requests that neither were in time nor got what they asked for if they could not be: an
    answer all the same, or a refusal at once."""
    late = sum(each.ok and not each.in_time for each in ran.answers)
    kept = sum(each.in_time for each in ran.answers)
    return len(ran.answers) - kept - (refused_at_once(ran) if refuse else late)


# ---------------------------------------------------------------------------- goals


def goals(found: Found) -> Iterator[Goal]:
    """Those of a live server; what was not measured says so."""
    yield from _steady(found.steady)
    yield from _overload(found)
    yield _cost(found.steady)
    yield from _burst(found)
    yield from _forecast(found)
    yield _links(found.links)


def decision_goals(found: Decisions | None) -> Iterator[Goal]:
    """p99 of thread CPU seconds; less is better."""
    shape = f"3 tiers x {REPLICAS} stages x {STEPS} steps"
    seconds = ((), ()) if found is None else (found.decide_s, found.table_s)
    yield _within(f"a decision, {shape}, its tables known", 5e-3, 1e-3, seconds[0])
    yield _within("the table of a full stage that reports", 20e-3, 5e-3, seconds[1])


def split_goals(splits: Sequence[Split]) -> Iterator[Goal]:
    """Of `elastic` where there is no time for what is cheaper; less is better."""
    tight = [s for s in splits if s.by == "elastic" and s.patience < max(split.PATIENCE)]
    for one in tight:
        ratio = over_best(splits, one)
        what = (
            f"a burst on {one.replicas} of each stage, due at {one.patience:g} times the best "
            "split: makespan of `elastic` over it"
        )
        yield Goal(what, 1.1, 1.05, ratio, f"{ratio:.3f}", "1.10", "1.05")


def _within(what: str, most_s: float, aim_s: float, taken_s: Sequence[float]) -> Goal:
    value = quantile(taken_s, 0.99)
    shown = NOT_MEASURED if value is None else f"{1e3 * value:.1f} ms"
    what = f"{what}: thread CPU time, p99"
    return Goal(what, most_s, aim_s, value, shown, f"{1e3 * most_s:g} ms", f"{1e3 * aim_s:g} ms")


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def points(value: float, around: Interval | None) -> str:
    """A difference of shares with its interval."""
    shown = f"{100 * value:+.1f} points"
    return (
        shown if around is None else f"{shown} ({100 * around[0]:+.1f} to {100 * around[1]:+.1f})"
    )


def _steady(runs: Sequence[Ran]) -> Iterator[Goal]:
    value = runs[0].in_time if runs else None
    what = f"in time at {STEADY:g} C"
    shown = NOT_MEASURED if value is None else percent(value)
    yield Goal(what, 0.95, 0.99, value, shown, "95 %", "99 %", void(runs[:1]))
    behind = [ran for ran in runs[1:] if _behind(runs[0], ran)]
    names = ", ".join(f"`{ran.arm}`" for ran in behind)
    yield Goal(
        f"no fewer in time at {STEADY:g} C than any other arm, beyond the paired interval",
        0.0,
        0.0,
        -float(len(behind)) if runs else None,
        (f"fewer than {names}" if behind else "none is ahead") if runs else NOT_MEASURED,
        "none ahead",
        "-",
        void(runs),
    )


def _behind(ours: Ran, theirs: Ran) -> bool:
    around = paired.difference(in_time(ours), in_time(theirs))
    return around is not None and around[1] < 0


def highest_goodput(found: Found) -> float:
    """Of `elastic` at any rate that was measured."""
    return max((goodput(ran) for ran in elastic(found)), default=0.0)


def elastic(found: Found) -> list[Ran]:
    """Runs of `elastic` at a rate, by rate."""
    runs = [*found.forecast, *found.steady[:1], *found.overload]
    return sorted(runs, key=lambda ran: ran.rate_per_s)


def _overload(found: Found) -> Iterator[Goal]:
    for times in (1.2, 2.0):
        near = [
            ran
            for ran in found.overload
            if abs(ran.rate_per_s / found.capacity.per_s - times) < 1e-6
        ]
        value = goodput(near[0]) / highest_goodput(found) if near else None
        shown = NOT_MEASURED if value is None else percent(value)
        what = f"goodput at {times:g} C, share of the highest at any rate"
        yield Goal(what, 0.90, 0.97, value, shown, "90 %", "97 %", void(near))


def _cost(runs: Sequence[Ran]) -> Goal:
    """Saved on a request against the second arm, `earliest`."""
    ours, theirs = (mean_cost(ran) for ran in runs[:2]) if len(runs) > 1 else (None, None)
    value = 1 - ours / theirs if ours is not None and theirs else None
    shown = NOT_MEASURED
    if value is not None:
        around = paired.ratio_of_means(costs(runs[0]), costs(runs[1]))
        shown = f"{percent(value)} less"
        if around is not None:
            shown += f" ({100 * (1 - around[1]):.1f} to {100 * (1 - around[0]):.1f})"
    what = f"cost of a request at {STEADY:g} C against `earliest`"
    return Goal(what, 0.15, 0.25, value, shown, "15 % less", "25 % less", void(runs[:2]))


def _burst(found: Found) -> Iterator[Goal]:
    runs, bound = found.bursts, found.bound
    for ran, refuse in zip(runs, (False, True), strict=False):
        rounds = len(ran.answers) / found.burst
        value = sum(in_time(ran)) / rounds / bound if bound else None
        shown = NOT_MEASURED if value is None else percent(value)
        what = f"{found.burst} at once, `{ran.arm}`: in time, of what an offline search gets"
        yield Goal(what, 0.90, 1.0, value, shown, "90 %", "100 %", void([ran]))
        left = otherwise(ran, refuse)
        what = f"all others {'refused at once' if refuse else 'answered late'}"
        shown = "all" if not left else f"{left} of {len(ran.answers)} were not"
        yield Goal(what, 0.0, 0.0, -float(left), shown, "all", "-", void([ran]))


def _forecast(found: Found) -> Iterator[Goal]:
    runs = [ran for ran in elastic(found) if ran.rate_per_s < 0.95 * found.capacity.per_s]
    known, inside = errors(runs), covered(runs)
    value = median(known) if known else None
    shown = NOT_MEASURED if value is None else percent(value)
    share = corrected(runs)
    if share is not None:
        shown += f" ({percent(share)} by `predicted_50_s`, the others by `predicted_s`)"
    what = "forecast against actual seconds at 0.2 to 0.9 C, median error"
    yield Goal(what, 0.10, 0.05, value, shown, "10 %", "5 %", void(runs))
    share = fmean(inside) if inside else None
    yield Goal(
        "share of actual seconds under the predicted 90 % quantile",
        -0.05,
        -0.05,
        None if share is None else -abs(share - 0.90),
        NOT_MEASURED if share is None else percent(share),
        "85 to 95 %",
        "-",
        void(runs),
    )


def _links(runs: Sequence[Ran]) -> Goal:
    value, shown = None, NOT_MEASURED
    if len(runs) == 2:
        around = paired.difference(in_time(runs[0]), in_time(runs[1]))
        value = around[0] if around else None
        shown = points(runs[0].in_time - runs[1].in_time, around)
    what = "in time with measured links, more than with the links as stated"
    return Goal(what, 1e-9, 1e-9, value, shown, "beyond the interval", "-", void(runs))
