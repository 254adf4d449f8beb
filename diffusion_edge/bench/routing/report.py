"""What the benchmark of the router found, as JSON and as a page. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from diffusion_edge.bench import paired
from diffusion_edge.bench.open_loop import quantile
from diffusion_edge.bench.report import Machine, seconds
from diffusion_edge.bench.routing.decision import REPLICAS, STEPS, Decisions
from diffusion_edge.bench.routing.figures import (
    Goal,
    corrected,
    costs,
    covered,
    decision_goals,
    elastic,
    errors,
    goals,
    goodput,
    highest_goodput,
    in_time,
    mean_cost,
    otherwise,
    percent,
    points,
    refused_at_once,
    split_goals,
)
from diffusion_edge.bench.routing.parts import SHARE, STEADY, Found
from diffusion_edge.bench.routing.records import MOST_OVERRUNS, Ran, overrun_share
from diffusion_edge.bench.routing.split import Split, over_best
from diffusion_edge.markdown import listed, marks, section, table

COMMAND = "diffusion-edge bench routing"
MARKS = marks(COMMAND)


@dataclass(frozen=True)
class Report:
    """scale: what published seconds were times. trace: what links followed in the part `links`.
    emulated: what the server said of itself. found: of a live server, None if none was needed.
    splits: of bursts on views."""

    command: str
    family: str
    scale: float
    trace: str
    emulated: str
    measured: str
    machine: Machine
    versions: dict[str, str]
    found: Found | None
    splits: tuple[Split, ...]
    decisions: Decisions | None

    @property
    def goals(self) -> list[Goal]:
        live = [] if self.found is None else list(goals(self.found))
        return [*live, *split_goals(self.splits), *decision_goals(self.decisions)]

    def as_json(self) -> dict[str, Any]:
        """Without the single answers, which the ledger has."""
        rows = [
            {"arm": ran.arm, "rate_per_s": ran.rate_per_s, "sent": len(ran.answers)}
            | {"in_time": ran.in_time, "cost": mean_cost(ran), "overruns": overrun_share(ran)}
            for ran in self._runs()
        ]
        found = self.found
        return {
            "command": self.command,
            "scale": self.scale,
            "versions": self.versions,
            "machine": asdict(self.machine),
            "wanted": None if found is None else asdict(found.wanted),
            "capacity_per_s": None if found is None else found.capacity.per_s,
            "targets": [asdict(goal) | {"reached": goal.reached} for goal in self.goals],
            "rows": rows,
            "splits": [asdict(each) for each in self.splits],
        }

    def _runs(self) -> list[Ran]:
        found = self.found
        if found is None:
            return []
        parts = (found.steady, found.overload, found.bursts, found.forecast, found.links)
        return [*found.capacity.runs, *(ran for part in parts for ran in part)]

    @property
    def days(self) -> str:
        """First and last day of measuring."""
        days = sorted({ran.at[:10] for ran in self._runs()} or {self.measured})
        return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"

    @property
    def load(self) -> float:
        return max((ran.load for ran in self._runs()), default=0.0)


def page_lines(report: Report) -> Iterator[str]:
    at = report.machine
    yield (
        f"Measured on {report.days} by `{report.command}`: {at.cpu}, {at.cores} cores, for server "
        f"and client together; {listed(report.versions)}. The machine's load average over one "
        f"minute was at most {report.load:.2f} before a run."
    )
    rows = (
        (goal.what, goal.least_shown, goal.aim_shown, goal.shown, goal.reached)
        for goal in report.goals
    )
    yield from ("", *table(("target", "at least", "aim", "measured", ""), rows))
    if report.found is not None:
        yield from _live(report, report.found)
    if report.splits:
        yield from _splits(report.splits)
    if report.decisions is not None:
        yield from _decisions(report.decisions)


def _live(report: Report, found: Found) -> Iterator[str]:
    alone = ", ".join(f"`{n}` {seconds(s)}" for n, s in found.unloaded_s.items())
    yield ""
    yield (
        f"Emulated: {report.emulated}. Published seconds are times {report.scale:g} (times 10 in "
        f"`local.yaml`). One picture alone takes {alone}. All requests: {found.wanted.steps} "
        f"steps, deadline {seconds(found.wanted.deadline_s)}, quality floor "
        f"{found.wanted.quality_floor:.3f}. C is {found.capacity.per_s:.3g} a second."
    )
    yield from _capacity(found)
    if found.steady:
        yield from _steady(found)
    if found.overload:
        yield from _rates(found)
    if found.bursts:
        yield from _bursts(found)
    if found.forecast:
        yield from _forecasts(found)
    if found.links:
        yield from _links(found.links, report.trace)


def summary(report: Report) -> Iterator[str]:
    """The targets in lines of text."""
    for goal in report.goals:
        yield f"{goal.what}: {goal.shown}, {goal.reached}"


# ---------------------------------------------------------------------------- the tables


def _capacity(found: Found) -> Iterator[str]:
    known = found.capacity
    fails = "-" if known.fails_per_s is None else f"{known.fails_per_s:.3g}"
    title = (
        f"C: `in-turn` meets {SHARE:.0%} of deadlines at {known.per_s:.3g} a second and not at "
        f"{fails}; the rules run ahead say {known.guess_per_s:.3g}"
    )
    rows = (
        (f"{ran.rate_per_s:.3g}/s", str(len(ran.answers)), percent(ran.in_time), _overruns(ran))
        for ran in known.runs
    )
    yield from section(title, ("offered", "sent", "in time", "overruns"), rows)


def _steady(found: Found) -> Iterator[str]:
    ours = found.steady[0]
    title = f"At {STEADY:g} C, {ours.rate_per_s:.3g} a second, the same arrivals for every arm"
    head = ("arm", "sent", "in time", "`elastic` less this", "not answered", "p50", "p95", "cost")
    rows = ((*_arm(ran), *_against(ours, ran)) for ran in found.steady)
    yield from section(title, (*head, "cost of `elastic` over it", "overruns"), rows)


def _arm(ran: Ran) -> tuple[str, str, str]:
    return f"`{ran.arm}`", str(len(ran.answers)), percent(ran.in_time)


def _against(ours: Ran, ran: Ran) -> tuple[str, ...]:
    latencies = [each.latency_s for each in ran.answers if each.ok]
    middle, tail = (_seconds(quantile(latencies, share)) for share in (0.5, 0.95))
    cost, own = mean_cost(ran), mean_cost(ours)
    less, over = "-", "-"
    if ran is not ours:
        around = paired.difference(in_time(ours), in_time(ran))
        less = points(ours.in_time - ran.in_time, around)
        over = _ratio(own, cost, paired.ratio_of_means(costs(ours), costs(ran)))
    lost = str(sum(not each.ok for each in ran.answers))
    shown = "-" if cost is None else f"{cost:.2f}"
    return less, lost, middle, tail, shown, over, _overruns(ran)


def _ratio(ours: float | None, theirs: float | None, around: tuple[float, float] | None) -> str:
    if ours is None or not theirs:
        return "-"
    shown = f"{ours / theirs:.2f}"
    return shown if around is None else f"{shown} ({around[0]:.2f} to {around[1]:.2f})"


def _rates(found: Found) -> Iterator[str]:
    highest = highest_goodput(found)
    head = ("times C", "offered", "sent", "in time", "goodput", "of the highest")
    rows = (
        (
            f"{ran.rate_per_s / found.capacity.per_s:.2f}",
            *(f"{ran.rate_per_s:.3g}/s", str(len(ran.answers)), percent(ran.in_time)),
            *(f"{goodput(ran):.3g}/s", percent(goodput(ran) / highest if highest else 0.0)),
            *(_outcomes(ran), _overruns(ran)),
        )
        for ran in elastic(found)
    )
    yield from section("Goodput of `elastic`", (*head, "not answered", "overruns"), rows)


def _bursts(found: Found) -> Iterator[str]:
    title = f"{found.burst} requests in one instant; an offline search gets {found.bound} in time"
    head = ("arm", "sent", "in time", "late", "refused at once", "neither", "overruns")
    rows = (
        (
            *(f"`{ran.arm}`", str(len(ran.answers)), str(round(sum(in_time(ran))))),
            str(sum(each.ok and not each.in_time for each in ran.answers)),
            *(str(refused_at_once(ran)), str(otherwise(ran, refuse)), _overruns(ran)),
        )
        for ran, refuse in zip(found.bursts, (False, True), strict=True)
    )
    yield from section(title, head, rows)


def _forecasts(found: Found) -> Iterator[str]:
    title = (
        "Forecast of `elastic` against actual seconds, from the decision to the last image: "
        "`predicted_50_s`, or `predicted_s` before anything was learned"
    )
    asked = ("times C", "answered", "by `predicted_50_s`")
    head = (*asked, "median error", "of `predicted_s`", "actual / foretold", "under the 90 %")
    rows = (
        (f"{ran.rate_per_s / found.capacity.per_s:.2f}", *_calibrated(ran), _overruns(ran))
        for ran in elastic(found)
    )
    yield from section(title, (*head, "overruns"), rows)


def _calibrated(ran: Ran) -> tuple[str, ...]:
    known, bare, inside = errors([ran]), errors([ran], bare=True), covered([ran])
    ratios = [
        each.seconds / each.foretold_s
        for each in ran.answers
        if each.ok and each.seconds is not None and each.foretold_s
    ]
    learned = corrected([ran])
    return (
        str(len(known)),
        "-" if learned is None else percent(learned),
        percent(median(known)) if known else "-",
        percent(median(bare)) if bare else "-",
        f"{median(ratios):.2f}" if ratios else "-",
        percent(fmean(inside)) if inside else "-",
    )


def _links(runs: Sequence[Ran], trace: str) -> Iterator[str]:
    title = f"Links of the device follow `{trace}`, {runs[0].rate_per_s:.3g} a second"
    head = ("`elastic` goes by", "sent", "in time", "the first less this", "p50", "p95", "overruns")
    yield from section(title, head, (_by_link(runs, ran) for ran in runs))


def _by_link(runs: Sequence[Ran], ran: Ran) -> tuple[str, ...]:
    less, _, middle, tail, *_ = _against(runs[0], ran)
    return (*_arm(ran), less, middle, tail, _overruns(ran))


def _splits(splits: Sequence[Split]) -> Iterator[str]:
    title = "A burst in one instant on views, decided one after another, and the best split found"
    head = ("of each stage", "deadline", "by", "all done", "over the best", "cost")
    rows = (
        (
            str(each.replicas),
            f"{seconds(each.deadline_s)} ({each.patience:g})" if each.patience else "-",
            *(f"`{each.by}`", seconds(each.makespan_s), f"{over_best(splits, each):.3f}"),
            f"{each.cost:.2f}",
            *((str(each.promised), str(each.in_time)) if each.patience else ("-", "-")),
        )
        for each in splits
    )
    yield from section(title, (*head, "promised", "in time"), rows)


def _decisions(found: Decisions) -> Iterator[str]:
    title = f"Thread CPU time on drawn views of 3 tiers x {REPLICAS} stages, {STEPS} steps"
    head = ("", "times", "median", "p90", "p99")
    kinds = (
        ("a decision, its tables known", found.decide_s),
        ("the table of a full stage", found.table_s),
    )
    rows = (
        (what, str(len(taken)), *(_seconds(quantile(taken, share)) for share in (0.5, 0.9, 0.99)))
        for what, taken in kinds
    )
    yield from section(title, head, rows)


def _overruns(ran: Ran) -> str:
    share = overrun_share(ran)
    shown = f"{100 * share:.2f} %"
    return f"**void: {shown}**" if share > MOST_OVERRUNS else shown


def _outcomes(ran: Ran) -> str:
    counts: dict[str, int] = {}
    for each in ran.answers:
        if not each.ok:
            counts[each.outcome] = counts.get(each.outcome, 0) + 1
    return ", ".join(f"{code} {count}" for code, count in sorted(counts.items())) or "-"


def _seconds(value: float | None) -> str:
    return "-" if value is None else seconds(value)
