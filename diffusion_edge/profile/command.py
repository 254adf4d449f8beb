"""The commands `profile` and `plots`. Torch and matplotlib are imported when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffusion_edge.config import read_text
from diffusion_edge.errors import ConfigError, InvalidRequest
from diffusion_edge.types import MAX_STEPS

if TYPE_CHECKING:
    from diffusion_edge.families.card import FamilyCard
    from diffusion_edge.profile.metric import Metric
    from diffusion_edge.routing.quality import QualityTable

LAST_SEED = 2**63
"""Of a first image; a generator takes seeds up to 2**64 - 1, and there are more images."""
MANY = 256
"""Prompts where neither the number nor a file is given."""

FamilyArgument = Annotated[
    Path, typer.Argument(help="The family's folder, or its name in stage_models.")
]


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
    lines, source = prompts_of(found, prompts, captions, seed)
    asked = sorted({resolved_steps(card.defaults.solver, n) for n in steps or (10, 20)})
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
    for line in (f"{written}: {len(done.rows)} plans, {len(lines)} prompts", *summary(done)):
        typer.echo(line)


def plots(
    family: FamilyArgument,
    page: Annotated[Path, typer.Option(help="A Markdown page; plots go beside it.")] = Path(
        "docs/quality.md"
    ),
) -> None:
    """Draw a family's quality table, and write what it says into a page."""
    from diffusion_edge.families.card import load_card
    from diffusion_edge.profile.plots import write_page
    from diffusion_edge.routing.quality import QualityTable

    if not page.parent.is_dir():
        raise InvalidRequest(f"{page}: there is no folder {page.parent}")
    card = load_card(family_folder(family))
    table = QualityTable.read(card.root / "quality.json")
    for file in write_page(table, page, _command(card, table)):
        typer.echo(str(file))


def _command(card: FamilyCard, table: QualityTable) -> str:
    """The command that measures such a table."""
    from diffusion_edge.schedule import resolved_steps

    words = [f"diffusion-edge profile {card.name} --captions {table.captions} --seed {table.seed}"]
    extra = int(resolved_steps(table.solver, 2) - 2)
    words += [f"--steps {steps - extra}" for steps in sorted({sum(r.steps) for r in table.rows})]
    if table.metric != card.metric:
        words.append(f"--metric {table.metric}")
    if table.prompts != table.metric:
        words.append(f"--prompts {table.prompts}")
    return " ".join(words)


def family_folder(family: Path) -> Path:
    """The folder itself, or the one of that name in stage_models."""
    named = Path("stage_models") / family
    beside = not (family / "family.yaml").exists() and (named / "family.yaml").exists()
    return named if beside else family


def prompts_of(
    metric: Metric, file: Path | None, count: int | None, seed: int
) -> tuple[Sequence[str], str]:
    """The prompts and where they came from. Raises InvalidRequest if there are too few."""
    if file is not None:
        lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
        if len(lines) < max(2, count or 0):
            raise InvalidRequest(f"{file} has {len(lines)} prompts, not {max(2, count or 0)}")
        return lines[:count], file.name
    if metric.prompts is None:
        raise ConfigError(
            f"metric {metric.name!r} has no prompts of its own: give a file of them, one a line, "
            "with --prompts",
            key="metric",
        )
    return metric.prompts(count or MANY, seed), metric.name


def summary(table: QualityTable) -> list[str]:
    """What the table says in a few lines."""
    lines = [
        f"{row.plan}: score {row.score:.3f} ({row.interval[0]:.3f} to {row.interval[1]:.3f}), "
        f"quality {row.relative:.3f}"
        for row in table.rows
        if len(row.stages) == 1
    ]
    left = table.model.left_out
    if left is not None:
        lines.append(
            f"the model that fills the gaps is off by {left.mean:.3f} on average and "
            f"{left.largest:.3f} at most, on each of {left.rows} rows when fitted without it"
        )
    return lines
