"""The command `codecs`. Torch is imported when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffusion_edge.commands import pages
from diffusion_edge.commands.arguments import (
    FamilyArgument,
    FirstSeed,
    MetricName,
    PromptsFile,
    card_of,
    check_writable,
    prompts_of,
)
from diffusion_edge.config import Defaults
from diffusion_edge.plan import MAX_STEPS
from diffusion_edge.routing.codecs import FILE

if TYPE_CHECKING:
    from diffusion_edge.profile.codecs import Task

MANY = 128
"""Prompts where neither the number nor a file is given."""


def codecs(
    family: FamilyArgument,
    captions: Annotated[
        int | None, typer.Option(min=2, help=f"How many prompts; {MANY}, or all of the file.")
    ] = None,
    solver: Annotated[
        list[str] | None, typer.Option(help="May be repeated; all that fit the family.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=2, max=MAX_STEPS, help="Steps to ask for.")
    ] = None,
    hand_off: Annotated[
        list[int] | None,
        typer.Option(min=1, help="May be repeated; all."),
    ] = None,
    seed: FirstSeed = 1000,
    metric: MetricName = None,
    prompts: PromptsFile = None,
    out: Annotated[Path | None, typer.Option(help="Instead of the family's codecs.json.")] = None,
    page: Annotated[Path, typer.Option(help="A Markdown page for the table.")] = Path(
        "docs/codecs.md"
    ),
) -> None:
    """Measure what each codec loses, for codec `auto`. An interrupted run goes on."""
    from diffusion_edge.families.quiet import quiet_libraries
    from diffusion_edge.profile.codecs import MARKS, Task, measure, page_lines, table
    from diffusion_edge.profile.metric import load_metric
    from diffusion_edge.profile.progress import pictures_bar
    from diffusion_edge.profile.table import write

    card = card_of(family)
    found = load_metric(metric or card.metric)
    texts, source = prompts_of(found, prompts, captions, seed, MANY)
    written = out or card.root / FILE
    check_writable(written)
    pages.check(page, MARKS)  # before the work, not after it
    asked = steps or card.defaults.steps
    handoffs = tuple(sorted(set(hand_off or ())))
    solvers = tuple(solver or card.solvers())
    task = Task(card, found, texts, source, solvers, asked, handoffs, seed)
    kept = written.with_suffix(".part.jsonl")
    quiet_libraries()
    try:
        with pictures_bar(task.pictures) as advance:
            losses = measure(task, kept, advance)
    except KeyboardInterrupt:
        typer.secho(f"what is done is in {kept}; the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    done = table(task, losses)
    write(done, written)
    pages.write(page, MARKS, page_lines(done, _command(task), Defaults().codec_loss))
    kept.unlink()
    typer.echo(f"{written}, {page}: {len(solvers)} solvers, {len(texts)} prompts")


def _command(task: Task) -> str:
    """The command that measures the task."""
    card = task.card
    words = [f"diffusion-edge codecs {card.name} --captions {len(task.prompts)}"]
    words += [f"--steps {task.asked} --seed {task.seed}"]
    if task.solvers != card.solvers():
        words += [f"--solver {solver}" for solver in task.solvers]
    words += [f"--hand-off {handoff}" for handoff in task.handoffs]
    if task.metric.name != card.metric:
        words.append(f"--metric {task.metric.name}")
    if task.source != task.metric.name:
        words.append(f"--prompts {task.source}")
    return " ".join(words)
