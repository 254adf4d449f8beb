"""The command `plots`. Matplotlib is imported when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffusion_edge.commands.arguments import FamilyArgument, card_of, check_writable

if TYPE_CHECKING:
    from diffusion_edge.families.card import FamilyCard
    from diffusion_edge.routing.quality import QualityTable, SizeQuality


def plots(
    family: FamilyArgument,
    page: Annotated[Path, typer.Option(help="A Markdown page; plots go beside it.")] = Path(
        "docs/quality.md"
    ),
) -> None:
    """Draw a family's quality table, and write what it says into a page."""
    from diffusion_edge.profile.plots import write_page
    from diffusion_edge.routing.quality import QualityTable

    check_writable(page)
    card = card_of(family)
    table = QualityTable.read(card.root / "quality.json")
    commands = {each.size: _command(card, table, each) for each in table.sizes}
    for file in write_page(table, page, commands):
        typer.echo(str(file))


def _command(card: FamilyCard, table: QualityTable, each: SizeQuality) -> str:
    """The command that measures such a table."""
    from diffusion_edge.schedule import resolved_steps

    words = [f"diffusion-edge profile {card.name} --size {each.size}"]
    least = min(row.n for row in each.rows)
    if least < each.captions:
        words.append(f"--coarse {least} --pictures {sum(row.n for row in each.rows)}")
    words.append(f"--captions {each.captions} --seed {each.seed}")
    extra = int(resolved_steps(table.solver, 2) - 2)
    words += [f"--steps {steps - extra}" for steps in each.steps]
    if table.metric != card.metric:
        words.append(f"--metric {table.metric}")
    if each.prompts != table.metric:
        words.append(f"--prompts {each.prompts}")
    return " ".join(words)
