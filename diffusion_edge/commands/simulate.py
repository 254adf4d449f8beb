"""The command `simulate`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from diffusion_edge.bench.simulated import Run
    from diffusion_edge.sim.scenario import Scenario
    from diffusion_edge.sim.tally import Figures

KINDS = 3
"""Kinds of plans that are shown of each policy."""


def simulate(
    scenario: Annotated[Path, typer.Argument(help="A YAML file, such as steady.yaml.")],
    policy: Annotated[
        list[str] | None,
        typer.Option(help="Instead of the file's: a name, or a plan; may be repeated."),
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Instead of the file's.")] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Of arrivals, instead of the file's; several for misses against load."),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(help="A folder for plots: frontier, misses by rate, a timeline by policy."),
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="A file for every figure of every run.")
    ] = None,
) -> None:
    """Play a scenario on a virtual clock, by the server's own rules, and show what became of it."""
    from diffusion_edge.bench.simulated import config_of, family_of, runs
    from diffusion_edge.profile.progress import bar
    from diffusion_edge.sim.scenario import load

    rates: Sequence[float | None] = rate or [None]
    asked = [load(scenario, policy, requests, each) for each in rates]
    settings = config_of(asked[0])
    family = family_of(settings)
    total = sum(len(one.seeds) * len(one.policies) * one.requests.count for one in asked)
    with bar(total, "requests") as came:
        found = [list(runs(one, settings, family, came)) for one in asked]
    if as_json is not None:
        told = [_told(one.model_dump(), each) for one, each in zip(asked, found, strict=True)]
        as_json.write_text(json.dumps(told if rate else told[0], indent=1) + "\n")
    for one, each in zip(asked, found, strict=True):
        _show(one, scenario.stem, each)
    if plots is not None:
        for file in _drawn(asked, found, plots):
            typer.echo(str(file))


def _show(wanted: Scenario, name: str, found: Sequence[Run]) -> None:
    from rich.console import Console

    console = Console()
    console.print(_table(wanted.title or name, wanted.policies, found))
    for run in found:
        if run.most is not None:
            console.print(_gap(run.figures.seed, run.earned, run.most), highlight=False)
    for name in wanted.policies:
        kinds = ", ".join(_kinds([run.figures for run in _of(name, found)]))
        console.print(f"{name}: {kinds or 'nothing was begun'}", markup=False, highlight=False)


def _drawn(
    asked: Sequence[Scenario], found: Sequence[Sequence[Run]], folder: Path
) -> Iterator[Path]:
    """Of the first rate and seed, but misses, which are of all rates."""
    from diffusion_edge.bench.proof import plots
    from diffusion_edge.bench.proof.runs import events, points_of

    folder.mkdir(parents=True, exist_ok=True)
    by_rate = [
        point for one, runs in zip(asked, found, strict=True) for point in points_of(one, runs)
    ]
    yield from plots.draw_all(points_of(asked[0], found[0]), by_rate, folder)
    seed = asked[0].seeds[0]
    for run in found[0]:
        name = run.figures.policy
        if run.figures.seed == seed:
            file = folder / f"timeline-{re.sub('[^a-z0-9]+', '-', name)}.png"
            yield plots.timeline(run.told, f"{asked[0].title}: {name}", file, events(asked[0]))


def _gap(seed: int, earned: float, most: float) -> str:
    """How far the oracle may be from the best there is."""
    gap = f", {1 - earned / most:.1%} below" if most > 0 else ""
    return f"seed {seed}: the oracle earns {earned:.3f}, nobody more than {most:.3f}{gap}"


def _told(scenario: dict[str, Any], found: Sequence[Run]) -> dict[str, Any]:
    told = [
        run.figures.as_json()
        | {"events": run.events, "cpu_s": round(run.cpu_s, 3)}
        | {"earned": run.earned, "most": run.most}
        for run in found
    ]
    return {"scenario": scenario, "runs": told}


def _table(title: str, policies: Iterable[str], found: Sequence[Run]) -> Any:
    """The mean over the seeds."""
    from rich.table import Table

    seeds = len({run.figures.seed for run in found})
    of = f", mean of {seeds} seeds" if seeds > 1 else ""
    table = Table(title=f"{title}{of}", title_justify="left")
    table.add_column("policy", overflow="fold", min_width=8)
    for name in ("in time", "late", "lost", "mean s", "p50", "p95", "cost", "reward", "off by"):
        table.add_column(name, justify="right", no_wrap=True)
    for policy in policies:
        table.add_row(policy, *_row(_of(policy, found)))
    return table


def _of(policy: str, found: Sequence[Run]) -> list[Run]:
    return [run for run in found if run.figures.policy == policy]


def _row(found: Sequence[Run]) -> list[str]:
    """Shares of all requests, of which the lost ones got no picture; seconds, cost and how far
    forecasts were off are of those that did. The reward (`routing.reward`) is of all."""
    runs = [run.figures for run in found]
    total = sum(each.requests for each in runs)
    latency_s = [[each.latency_s[name] for each in runs] for name in ("mean", "p50", "p95")]
    return [
        f"{sum(each.in_time for each in runs) / total:.1%}",
        f"{sum(each.late for each in runs) / total:.1%}",
        f"{sum(each.lost for each in runs) / total:.1%}",
        *(_mean(column) for column in latency_s),
        _mean([each.cost for each in runs]),
        _mean([run.earned for run in found]),
        _mean([each.forecast_error for each in runs], "{:.1%}"),
    ]


def _kinds(runs: Sequence[Figures]) -> list[str]:
    names = dict.fromkeys(name for each in runs for name in each.kinds)
    shares = {name: fmean(each.kinds.get(name, 0.0) for each in runs) for name in names}
    most = sorted(shares, key=shares.__getitem__, reverse=True)[:KINDS]
    return [f"{name} {shares[name]:.0%}" for name in most]


def _mean(values: Iterable[float | None], shown: str = "{:.3g}") -> str:
    known = [value for value in values if value is not None]
    return shown.format(fmean(known)) if known else "-"
