"""The command `codecs`. Torch is imported when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffusion_edge.commands.arguments import (
    LAST_SEED,
    FamilyArgument,
    family_folder,
    prompts_of,
)
from diffusion_edge.config import Defaults
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.plan import MAX_STEPS
from diffusion_edge.routing.codecs import FILE
from diffusion_edge.strict import read_text

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
    seed: Annotated[
        int, typer.Option(min=0, max=LAST_SEED, help="Of the prompts and of the first image.")
    ] = 1000,
    metric: Annotated[
        str | None, typer.Option(help="module:object or distance, instead of the card's.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts, one a line.")] = None,
    out: Annotated[Path | None, typer.Option(help="Instead of the family's codecs.json.")] = None,
    page: Annotated[Path, typer.Option(help="A Markdown page for the table.")] = Path(
        "docs/codecs.md"
    ),
) -> None:
    """Measure what each codec loses, for codec `auto`. An interrupted run goes on."""
    from diffusion_edge.families.card import load_card
    from diffusion_edge.families.quiet import quiet_libraries
    from diffusion_edge.profile.codecs import MARKS, Task, as_text, measure, page_lines, table
    from diffusion_edge.profile.metric import load_metric
    from diffusion_edge.profile.plots import between
    from diffusion_edge.profile.progress import pictures_bar

    card = load_card(family_folder(family))
    found = load_metric(metric or card.metric)
    texts, source = prompts_of(found, prompts, captions, seed, MANY)
    written = out or card.root / FILE
    for file in (written, page):
        if not file.parent.is_dir():
            raise InvalidRequest(f"{file}: there is no folder {file.parent}")
        if file.is_dir():
            raise InvalidRequest(f"{file}: this is a folder; name a file")
    asked = steps or card.defaults.steps
    handoffs = tuple(sorted(set(hand_off or ())))
    solvers = tuple(solver or card.solvers())
    task = Task(card, found, texts, source, solvers, asked, handoffs, seed)
    text = read_text(page) if page.exists() else "# Codecs\n\n" + "\n".join(MARKS) + "\n"
    between(text, MARKS, "", page)  # before the work, not after it
    kept = written.with_suffix(".part.jsonl")
    quiet_libraries()
    try:
        with pictures_bar(task.pictures) as advance:
            losses = measure(task, kept, advance)
    except KeyboardInterrupt:
        typer.secho(f"what is done is in {kept}; the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    done = table(task, losses)
    written.write_text(as_text(done))
    lines = page_lines(done, _command(task), Defaults().codec_loss)
    page.write_text(between(text, MARKS, "\n".join(lines), page))
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
