"""The command `bench engine`. Torch is imported when it is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.profile.command import family_folder

FAMILY = Path("stage_models/shapes")
STEPS = 20
REQUESTS = 8
ROUNDS = 5


def engine(
    family: Annotated[
        Path, typer.Argument(help="The family's folder, or its name in stage_models.")
    ] = FAMILY,
    stage: Annotated[str | None, typer.Option(help="The family's reference if not given.")] = None,
    requests: Annotated[int, typer.Option(min=1, help="That come at once.")] = REQUESTS,
    rounds: Annotated[int, typer.Option(min=1, help="In each, every arm runs once.")] = ROUNDS,
    steps: Annotated[
        int, typer.Option(min=4, max=500, help="Of the first request; mixed ones take shares.")
    ] = STEPS,
    seed: Annotated[int, typer.Option(min=0, help="Of the first image.")] = 1000,
    page: Annotated[Path | None, typer.Option(help="A Markdown page for the tables.")] = None,
) -> None:
    """The engine against the stock pipeline: the same images, then seconds. Ends in a JSON line."""
    from diffusion_edge.bench.engine import Task, measure
    from diffusion_edge.bench.report import MARKS, page_lines, summary
    from diffusion_edge.families.card import load_card
    from diffusion_edge.families.quiet import quiet_libraries
    from diffusion_edge.profile.plots import between

    card = load_card(family_folder(family))
    named = stage or card.reference
    card.folder(named)  # a stage that is not there is told before the work
    text = ""
    if page is not None:
        if not page.parent.is_dir():
            raise InvalidRequest(f"{page}: there is no folder {page.parent}")
        text = page.read_text() if page.exists() else "# Performance\n\n" + "\n".join(MARKS) + "\n"
        between(text, MARKS, "", page)
    quiet_libraries()
    command = (
        f"diffusion-edge bench engine {family.name} --stage {named} --requests {requests} "
        f"--rounds {rounds} --steps {steps} --seed {seed}"
    )
    task = Task(card, named, requests, rounds, steps, seed, command)
    # Lines rather than a bar: a bar draws itself from a thread of its own while arms are timed.
    report = measure(task, lambda line: typer.echo(line, err=True))
    if page is not None:
        page.write_text(between(text, MARKS, "\n".join(page_lines(report)), page))
    for line in summary(report):
        typer.echo(line)
    typer.echo(json.dumps(report.as_json()))
