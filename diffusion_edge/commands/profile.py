"""The command `profile`. Torch is imported when it is needed."""

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
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.types import MAX_STEPS

if TYPE_CHECKING:
    from diffusion_edge.routing.quality import QualityTable

MANY = 256
"""Prompts where neither the number nor a file is given."""


def profile(
    family: FamilyArgument,
    captions: Annotated[
        int | None, typer.Option(min=2, help=f"How many prompts; {MANY}, or all of the file.")
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(min=1, max=MAX_STEPS, help="Steps to ask for; may be repeated."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=LAST_SEED, help="Of the prompts and of the first image.")
    ] = 1000,
    metric: Annotated[
        str | None, typer.Option(help="module:object or distance, instead of the card's.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts, one a line.")] = None,
    out: Annotated[Path | None, typer.Option(help="Instead of the family's quality.json.")] = None,
) -> None:
    """Measure the quality of a family's plans, for the router. An interrupted run goes on."""
    from diffusion_edge.families.card import load_card
    from diffusion_edge.families.quiet import quiet_libraries
    from diffusion_edge.profile.measure import Task, as_text, fingerprint, measure, table
    from diffusion_edge.profile.metric import load_metric
    from diffusion_edge.profile.progress import pictures_bar
    from diffusion_edge.schedule import resolved_steps

    card = load_card(family_folder(family))
    found = load_metric(metric or card.metric)
    lines, source = prompts_of(found, prompts, captions, seed, MANY)
    counts = {card.defaults.steps, *(steps or (card.defaults.steps // 2 or 1,))}
    asked = sorted({resolved_steps(card.defaults.solver, n) for n in counts})
    task = Task(card, fingerprint(card), found, lines, source, tuple(asked), seed)
    written = out or card.root / "quality.json"
    if not written.parent.is_dir():
        raise InvalidRequest(f"{written}: there is no folder {written.parent}")
    if written.is_dir():
        raise InvalidRequest(f"{written}: this is a folder; name a file")
    kept = written.with_suffix(".part.jsonl")
    quiet_libraries()
    try:
        with pictures_bar(len(task.plans) * len(lines)) as advance:
            scores = measure(task, kept, advance)
    except KeyboardInterrupt:
        typer.secho(f"what is done is in {kept}; the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    done = table(task, scores)
    written.write_text(as_text(done))
    kept.unlink()
    for line in (f"{written}: {len(task.plans)} plans, {len(lines)} prompts", *summary(done)):
        typer.echo(line)


def summary(table: QualityTable) -> list[str]:
    """What the table says in a few lines."""
    lines = []
    for each in table.sizes:
        lines += [
            f"{each.size} pixels, {row.plan}: score {row.score:.3f} ({row.interval[0]:.3f} to "
            f"{row.interval[1]:.3f}), quality {row.relative:.3f}"
            for row in each.rows
            if len(row.stages) == 1
        ]
        left = each.left_out
        if left is not None:
            lines.append(
                f"the model that fills the gaps is off by {left.mean:.3f} on average and "
                f"{left.largest:.3f} at most, on each of {left.rows} rows when fitted without it"
            )
    return lines
