"""The commands of `bench`. Torch is imported when it is needed."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusion_edge.commands import pages
from diffusion_edge.commands.arguments import FAMILY, LAST_SEED, FamilyArgument, card_of
from diffusion_edge.commands.pages import PageFile
from diffusion_edge.places import REPOSITORY

if TYPE_CHECKING:
    from diffusion_edge.families.card import FamilyCard

STEPS = 20
REQUESTS = 8
ROUNDS = 5
KERNEL_ROUNDS = 9
SERVE_STEPS = 12
SERVE_ROUNDS = 3
SERVE_SECONDS = 40.0
TRACES = Path("loadtest/traces")
HOPS = 200
SCALE = 4.0
LINK_TRACE = Path("loadtest/traces/links/lte_bus_nyc.csv")
LEDGER = Path("build/routing.part.jsonl")
AGREE_LEDGER = Path("build/agree.part.jsonl")
PROOF_LEDGER = Path("build/proof.part.jsonl")
SIGNALS = Path("stage_models/shapes/signals.json")
SCENARIOS = ("steady", "burst", "links", "overload")

Stage = Annotated[str | None, typer.Option(help="The family's reference if not given.")]
Steps = Annotated[
    int, typer.Option(min=4, max=100, help="Of the first request; mixed ones take shares.")
]
Seed = Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of the first image.")]


def engine(
    family: FamilyArgument = FAMILY,
    stage: Stage = None,
    requests: Annotated[int, typer.Option(min=1, help="That come at once.")] = REQUESTS,
    rounds: Annotated[int, typer.Option(min=1, help="In each, every arm runs once.")] = ROUNDS,
    steps: Steps = STEPS,
    seed: Seed = 1000,
    page: PageFile = None,
) -> None:
    """The engine against the stock pipeline: the same images, then seconds. Ends in a JSON line."""
    from diffusion_edge.bench.engine import Task, measure
    from diffusion_edge.bench.report import ENGINE_MARKS, page_lines, summary

    card, named = _card(family, stage)
    pages.check(page, ENGINE_MARKS)
    command = (
        f"diffusion-edge bench engine {family.name} --stage {named} --requests {requests} "
        f"--rounds {rounds} --steps {steps} --seed {seed}"
    )
    report = measure(Task(card, named, requests, rounds, steps, seed, command), _tell)
    pages.write(page, ENGINE_MARKS, page_lines(report))
    _tell_all(summary(report), report.as_json())


def execution(
    family: FamilyArgument = FAMILY,
    stage: Annotated[
        list[str] | None, typer.Option(help="May be repeated; all of the family.")
    ] = None,
    size: Annotated[
        list[int] | None, typer.Option(min=1, help="Of squares in pixels; the default one.")
    ] = None,
    rows: Annotated[
        list[int] | None, typer.Option(min=1, help="In a pass; may be repeated; 2, 8 and 16.")
    ] = None,
    way: Annotated[
        list[str] | None, typer.Option(help="Beside eager; may be repeated; openvino.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="In each, every way runs once.")] = ROUNDS,
    passes: Annotated[int, typer.Option(min=1, help="In a round.")] = 4,
    page: PageFile = None,
) -> None:
    """The ways to run the denoisers: equal latents, then CPU time. Ends in a JSON line."""
    from diffusion_edge.bench.execution import COMMAND, MARKS, Task, measure, page_lines

    card, _ = _card(family, stage[0] if stage else None)
    pages.check(page, MARKS)
    stages, sizes = stage or list(card.stages), size or [card.defaults.size]
    counts, ways = rows or [2, 8, 16], way or ["openvino"]
    given: dict[str, Sequence[object]] = {
        "stage": stages,
        "size": sizes,
        "rows": counts,
        "way": ways,
    }
    options = [f"--{name} {value}" for name, values in given.items() for value in values]
    command = f"{COMMAND} {family.name} {' '.join(options)} --rounds {rounds} --passes {passes}"
    task = Task(card, stages, sizes, counts, ways, rounds, passes, command)
    report = measure(task, _tell)
    pages.write(page, MARKS, page_lines(report))
    _tell_all(page_lines(report), report.as_json())


def serve(
    family: FamilyArgument = FAMILY,
    stage: Stage = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Of the loads of a fixed rate.")
    ] = SERVE_ROUNDS,
    seconds: Annotated[float, typer.Option(min=1.0, help="Of one load.")] = SERVE_SECONDS,
    steps: Steps = SERVE_STEPS,
    seed: Seed = 1000,
    page: PageFile = None,
) -> None:
    """The server against Ray Serve with stock pipelines, under load. Ends in a JSON line."""
    from diffusion_edge.bench.report import SERVE_MARKS
    from diffusion_edge.bench.serve import Task, measure
    from diffusion_edge.bench.serve_report import page_lines, summary
    from diffusion_edge.serve.signals import signals_raise

    card, named = _card(family, stage)
    pages.check(page, SERVE_MARKS)
    command = (
        f"diffusion-edge bench serve {family.name} --stage {named} --rounds {rounds} "
        f"--seconds {seconds:g} --steps {steps} --seed {seed}"
    )
    with signals_raise():  # a SIGTERM ends the servers too
        report = measure(Task(card, named, steps, seconds, rounds, seed, command), _tell)
    pages.write(page, SERVE_MARKS, page_lines(report))
    _tell_all(summary(report), report.as_json())


def links(
    traces: Annotated[
        Path, typer.Argument(help="A folder with links/*.csv and rtt/*.csv.")
    ] = TRACES,
    hops: Annotated[int, typer.Option(min=20, help="Of one replay.")] = HOPS,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of all that is drawn.")] = 3000,
    page: PageFile = None,
) -> None:
    """The link estimators on recorded links, predicted hop by hop. Ends in a JSON line."""
    from diffusion_edge.bench.links import measure
    from diffusion_edge.bench.links_report import COMMAND, MARKS, page_lines, summary
    from diffusion_edge.profile.hops import Recordings
    from diffusion_edge.routing.links.learned import trained_on

    recordings = Recordings.read(traces)
    pages.check(page, MARKS)
    command = f"{COMMAND} {traces} --hops {hops} --seed {seed}"
    told = (command, datetime.date.today().isoformat(), trained_on())
    report = measure(recordings, hops, seed, told, _tell)
    pages.write(page, MARKS, page_lines(report))
    _tell_all(summary(report), report.as_json())


def routing(
    family: FamilyArgument = FAMILY,
    part: Annotated[
        list[str] | None, typer.Option(help="Only this one, and `capacity`; may be repeated.")
    ] = None,
    short: Annotated[bool, typer.Option(help="A few requests of everything, for tests.")] = False,
    scale: Annotated[
        float, typer.Option(min=0.001, help="Times the published seconds; 10 in local.yaml.")
    ] = SCALE,
    own_models: Annotated[
        bool, typer.Option(help="Compute what each stage's model computes; needs a scale of 10.")
    ] = False,
    trace: Annotated[Path, typer.Option(help="The device's links in the part `links`.")] = (
        LINK_TRACE
    ),
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of all that is drawn.")] = 1000,
    ledger: Annotated[
        Path, typer.Option(help="Where every request is kept; the same command goes on there.")
    ] = LEDGER,
    page: PageFile = None,
) -> None:
    """The router against baselines, on a server of its own as local.yaml states it, at another
    scale. Ends in a JSON line."""
    from diffusion_edge.bench.routing.command import Asked, measure
    from diffusion_edge.bench.routing.report import MARKS, page_lines, summary
    from diffusion_edge.serve.signals import signals_raise

    card, _ = _card(family, None)
    pages.check(page, MARKS)
    asked = Asked(card, tuple(part or ()), short, scale, own_models, trace, seed, ledger)
    with signals_raise():  # a SIGTERM ends the server too
        report = measure(asked, _tell)
    pages.write(page, MARKS, page_lines(report))
    _tell_all(summary(report), report.as_json())


def agree(
    scenarios: Annotated[
        list[Path] | None, typer.Argument(help="Files; those of loadtest/scenarios if none.")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Instead of the files'.")] = None,
    own_models: Annotated[
        bool, typer.Option(help="Compute what each stage's model computes, not the smallest's.")
    ] = False,
    ledger: Annotated[
        Path, typer.Option(help="Where every request is kept; the same command goes on there.")
    ] = AGREE_LEDGER,
    page: PageFile = None,
) -> None:
    """Scenarios on a live server and in the simulator. Ends in a JSON line."""
    from diffusion_edge.bench.routing.agree import COMMAND, MARKS, as_json, page_lines
    from diffusion_edge.bench.simulated import agreement
    from diffusion_edge.serve.signals import signals_raise

    files = scenarios or [REPOSITORY / "loadtest" / "scenarios" / f"{n}.yaml" for n in SCENARIOS]
    pages.check(page, MARKS)
    with signals_raise():  # a SIGTERM ends the server too
        found = agreement(files, requests, own_models, ledger, _tell)
    named = " ".join((COMMAND, *map(str, scenarios or ())))
    command = named + (f" --requests {requests}" if requests else "")
    command += " --own-models" if own_models else ""
    pages.write(page, MARKS, page_lines(found, command))
    _tell_all(page_lines(found, command), as_json(found, command))


def proof(
    policy: Annotated[
        list[str] | None, typer.Option(help="Only these, and elastic; may be repeated.")
    ] = None,
    short: Annotated[bool, typer.Option(help="A few requests in a few cells, for tests.")] = False,
    signals: Annotated[
        Path, typer.Option(help="A recording of `profile --signals`, for those that choose again.")
    ] = SIGNALS,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    ledger: Annotated[
        Path, typer.Option(help="Where every cell is kept; the same command goes on there.")
    ] = PROOF_LEDGER,
    plots: Annotated[Path | None, typer.Option(help="A folder for plots, if no page is.")] = None,
    page: PageFile = None,
) -> None:
    """All policies on the grid of cells, simulated, with hindsight and an oracle beside them. Ends
    in a JSON line; plots lie beside the page."""
    from diffusion_edge.bench.proof.command import Asked, draw, measure
    from diffusion_edge.bench.proof.report import MARKS, page_lines, summary

    pages.check(page, MARKS)
    report = measure(Asked(tuple(policy or ()), short, signals, workers, ledger), _tell)
    folder = plots or (page and page.parent)
    drawn = draw(report, folder, page.stem if page else "proof") if folder else []
    pages.write(page, MARKS, page_lines(report, drawn))
    _tell_all(summary(report), report.as_json())


def kernels(
    rounds: Annotated[
        int, typer.Option(min=1, help="In each, every arm runs once.")
    ] = KERNEL_ROUNDS,
    page: PageFile = None,
) -> None:
    """Fused operations against eager ones: the same results, then seconds. Ends in a JSON line."""
    from diffusion_edge.bench.kernels import MARKS, WORKS, measure, page_lines, summary

    pages.check(page, MARKS)
    command = f"diffusion-edge bench kernels --rounds {rounds}"
    report = measure(WORKS, rounds, command, _tell)
    pages.write(page, MARKS, page_lines(report))
    _tell_all(summary(report), report.as_json())


# ---------------------------------------------------------------------------- shared


def _card(family: Path, stage: str | None) -> tuple[FamilyCard, str]:
    """The card and the stage's name, which is one on disk."""
    from diffusion_edge.families.quiet import quiet_libraries

    card = card_of(family)
    named = stage or card.reference
    card.folder(named)  # a stage that is not there is told before the work
    quiet_libraries()
    return card, named


def _tell(line: str) -> None:
    # Lines rather than a bar: a bar draws itself from a thread of its own while arms are timed.
    typer.echo(line, err=True)


def _tell_all(lines: Iterable[str], found: Mapping[str, Any]) -> None:
    for line in lines:
        typer.echo(line)
    typer.echo(json.dumps(found))
