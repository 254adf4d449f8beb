"""What several commands take as arguments, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from diffusion_edge.errors import ConfigError, InvalidRequest
from diffusion_edge.places import family_folder
from diffusion_edge.request import AskedCodec
from diffusion_edge.schedule import SOLVERS
from diffusion_edge.strict import read_text

if TYPE_CHECKING:
    from diffusion_edge.families.card import FamilyCard
    from diffusion_edge.profile.metric import Metric

FAMILY = Path("stage_models/shapes")
CODECS = ", ".join(get_args(AskedCodec))
SOLVER_NAMES = ", ".join(SOLVERS)
LAST_SEED = 2**63
"""Of a first image; a generator takes seeds up to 2**64 - 1, and there are more images."""

FamilyArgument = Annotated[
    Path, typer.Argument(help="The family's folder, or its name in stage_models.")
]
FirstSeed = Annotated[
    int, typer.Option(min=0, max=LAST_SEED, help="Of the prompts and of the first image.")
]
MetricName = Annotated[
    str | None, typer.Option(help="module:object or distance, instead of the card's.")
]
PromptsFile = Annotated[Path | None, typer.Option(help="A file of prompts, one a line.")]


def card_of(family: Path) -> FamilyCard:
    """The card in the folder, or of the family of that name."""
    from diffusion_edge.families.card import load_card

    return load_card(family_folder(str(family)))


def check_writable(file: Path) -> None:
    """InvalidRequest, before the work, for a file that could not be written after it."""
    if not file.parent.is_dir():
        raise InvalidRequest(f"{file}: there is no folder {file.parent}")
    if file.is_dir():
        raise InvalidRequest(f"{file}: this is a folder; name a file")


def prompts_of(
    metric: Metric, file: Path | None, count: int | None, seed: int, many: int
) -> tuple[Sequence[str], str]:
    """The prompts and where they came from; `many` where neither a file nor a number is given.

    Raises InvalidRequest if there are too few."""
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
    return metric.prompts(count or many, seed), metric.name


def check_text(name: str, text: str) -> None:
    if not text.strip():
        raise InvalidRequest(f"the {name} is empty; say what the image shows")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"the {name} is not UTF-8 text") from None
