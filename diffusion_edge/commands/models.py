"""The commands `models list`, `models check` and `models pull`. The last two ask the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from diffusion_edge.commands.arguments import FamilyArgument, card_of
from diffusion_edge.errors import ConfigError, EdgeError

if TYPE_CHECKING:
    from diffusion_edge.families.card import FamilyCard
    from diffusion_edge.families.hub import Listing
    from diffusion_edge.families.space import Space

FAMILIES = Path("stage_models")


def listing() -> None:
    """The families here: their stages, models and licences, and what of them is on disk."""
    from rich.console import Console

    from diffusion_edge.families.card import load_card

    console = Console()
    for folder in _folders():
        card = load_card(folder)
        if console.is_terminal:
            console.print(_table(card))
            continue
        typer.echo(f"{card.name} ({card.architecture}): {card.title}")
        for row in _rows(card):
            typer.echo("  " + "  ".join(row))


def _folders() -> list[Path]:
    found = sorted(path.parent for path in FAMILIES.glob("*/family.yaml"))
    if not found:
        raise ConfigError(f"there are no families in {FAMILIES.resolve()}", file=str(FAMILIES))
    return found


def _rows(card: FamilyCard) -> list[tuple[str, str, str, str, str]]:
    """Stage, tier, model, licence, whether it is on disk."""
    return [
        (
            stage,
            at.tier,
            at.hub or f"{card.root / (at.folder or '')}",
            at.licence or card.licence,
            _here(card, stage),
        )
        for stage, at in card.stages.items()
    ]


def _here(card: FamilyCard, stage: str) -> str:
    try:
        return "missing" if _missing(card, stage) else "on disk"
    except ConfigError:
        return "refused"


def _table(card: FamilyCard) -> object:
    from rich.table import Table

    table = Table(title=f"{card.name} ({card.architecture}): {card.title}", title_justify="left")
    for column in ("stage", "tier", "model", "licence", "here"):
        table.add_column(column)
    for row in _rows(card):
        table.add_row(*row)
    return table


# ---------------------------------------------------------------------------- check


def check(family: FamilyArgument) -> None:
    """Tell what of a family is on disk, what it needs, and whether its stages fit together.

    Status 1 if files are missing or not of the kind that is loaded, or if the stages do not share
    one latent space and one noise.
    """
    card = card_of(family)
    good = True
    for stage in card.stages:
        typer.echo(f"{stage}: {_place(card, stage)}: {_state(card, stage)}")
        typer.echo(f"  memory: {_memory(card, stage)}")
        good = good and _here(card, stage) == "on disk"
    for line, fits in (*_spaces(card), *_noises(card)):
        good = good and fits
        typer.echo(line)
    if not good:
        raise typer.Exit(1)


def _place(card: FamilyCard, stage: str) -> str:
    at = card.stages[stage]
    return str(card.root / (at.folder or "")) if at.hub is None else f"{at.hub} at {at.revision}"


def _missing(card: FamilyCard, stage: str) -> list[str]:
    """Files that the stage lacks; those of another's text encoders are the other's. Raises
    ConfigError for files that are not loaded."""
    from diffusion_edge.families import hub

    folder = _folder(card, stage)
    return [hub.INDEX] if folder is None else hub.missing(folder, card.encodes(stage))


def _folder(card: FamilyCard, stage: str) -> Path | None:
    """Where the stage's model lies, be it whole or not."""
    from diffusion_edge.families import hub

    at = card.stages[stage]
    return hub.snapshot(at.hub, at.revision) if at.hub else card.root / (at.folder or "")


def _state(card: FamilyCard, stage: str) -> str:
    from diffusion_edge.families import hub
    from diffusion_edge.families.weights import human

    try:
        lacking = _missing(card, stage)
    except ConfigError as error:
        return f"refused: {error.message}"
    if not lacking:
        return "on disk"
    names = "" if lacking == [hub.INDEX] else f" {', '.join(lacking)}"
    at = card.stages[stage]
    if at.hub is None:
        return f"missing{names or ' ' + hub.INDEX}"
    try:
        nbytes = hub.to_come(hub.ask(at.hub, at.revision), card.encodes(stage))
    except ConfigError as error:
        return f"missing{names}; size not known: {error.message}"
    return f"missing{names}; {human(nbytes)} to fetch"


def _memory(card: FamilyCard, stage: str) -> str:
    """What the stage's weights come to in the card's dtype."""
    from diffusion_edge.families.weights import BYTES, human, needed_bytes

    at = card.stages[stage]
    texting = card.shared or stage
    own, shared = _folder(card, stage), _folder(card, texting)
    whole = _here(card, stage) == _here(card, texting) == "on disk"
    if whole and own is not None and shared is not None:
        texts = sorted(shared.glob("text_encoder*"))
        models = [own / "vae", *own.glob("unet"), *own.glob("transformer"), *texts]
        return f"{human(needed_bytes(models, at.dtype))} in {at.dtype}"
    if at.parameters_millions is None:
        return "not known before the weights are here"
    nbytes = BYTES[at.dtype] * at.parameters_millions * 1e6
    return f"{human(nbytes)} in {at.dtype} for the denoiser; text encoders and VAE come on top"


def _spaces(card: FamilyCard) -> list[tuple[str, bool]]:
    """A sentence on each stage's latent space, and whether it fits that of the others."""
    from diffusion_edge.families.space import space

    found: dict[str, Space] = {}
    lines: list[tuple[str, bool]] = []
    for stage in card.stages:
        folder = _folder(card, stage)
        if folder is None or _lacks_vae(card, stage):
            continue
        try:
            found[stage] = space(folder / "vae")
        except EdgeError as error:
            lines.append((f"latent space of {stage}: {error.message}", False))
    reference = card.vae or card.reference
    if reference not in found:
        return [*lines, (f"latent space: not known before the VAE of {reference} is here", True)]
    for stage, its in found.items():
        lines += _compared(card, stage, its, reference, found[reference])
    if all(fits for _, fits in lines):
        numbers = ", ".join(f"{name} {value:g}" for name, value in found[reference].numbers.items())
        names = ", ".join(found)
        lines.append((f"latent space: one for {names} ({numbers})", True))
    return lines


def _lacks_vae(card: FamilyCard, stage: str) -> bool:
    try:
        return any(name.startswith(("vae/", "model_index")) for name in _missing(card, stage))
    except ConfigError:
        return True


def _compared(
    card: FamilyCard, stage: str, its: Space, reference: str, other: Space
) -> list[tuple[str, bool]]:
    """A sentence if the two differ."""
    numbers, weights = its.scaled_unlike(other), its.weights_unlike(other)
    if not numbers and not weights:
        return []
    line = f"latent space: the VAE of {stage} is not that of {reference}: "
    line += "; ".join([*numbers, *weights])
    if card.vae is None or numbers:
        return [(f"{line}. They cannot hand off to each other", False)]
    return [(f"{line}. The card says that {reference}'s stands for all", True)]


def _noises(card: FamilyCard) -> list[tuple[str, bool]]:
    """A sentence on each stage's noise that is not the family's, and whether it fits."""
    from diffusion_edge.schedule import chosen_unlike

    here = [stage for stage in card.stages if _here(card, stage) == "on disk"]
    if card.reference not in here:
        return [(f"noise: not known before the scheduler of {card.reference} is here", True)]
    lines = []
    for stage in here:
        try:
            card.check_noise(stage)
            unlike = chosen_unlike(card.noise(stage), card.noise())
        except ConfigError as error:
            lines.append((f"noise: {error.message}", False))
            continue
        if unlike:
            told = f"noise: {stage} would choose levels otherwise than {card.reference}: "
            lines.append((f"{told}{'; '.join(unlike)}. Those of {card.reference} are taken", True))
    if all(fits for _, fits in lines):
        lines.append((f"noise: one for {', '.join(here)}", True))
    return lines


# ---------------------------------------------------------------------------- pull


def pull(family: FamilyArgument) -> None:
    """Fetch what is missing of a family from the Hugging Face hub, and no more than that.

    An interrupted fetch goes on with the same command.
    """
    from diffusion_edge.families import hub
    from diffusion_edge.families.weights import human

    card = card_of(family)
    absent = [s for s, at in card.stages.items() if at.hub is not None and _missing(card, s)]
    asked = {stage: _asked(card, stage) for stage in absent}
    sizes = {stage: hub.to_come(said, card.encodes(stage)) for stage, said in asked.items()}
    hub.check_room(sum(sizes.values()))
    try:
        for stage, said in asked.items():
            typer.echo(f"{stage}: {said.repository}, {human(sizes[stage])} to come")
            typer.echo(f"  licence: {_licence(card, stage, said)}")
            folder = hub.fetch(said, card.stages[stage].revision, card.encodes(stage))
            typer.echo(f"  commit {said.commit}, in {folder}")
    except KeyboardInterrupt:
        typer.secho("what is done is kept; the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    lacking = [stage for stage in card.stages if _missing(card, stage)]
    if lacking:
        raise ConfigError(
            f"{', '.join(lacking)} of {card.name} should be in {card.root}, but {card.root} "
            "lacks files; they are not on the hub"
        )
    typer.echo(f"{card.name} is on disk; `diffusion-edge models check {family}` compares its VAEs")


def _asked(card: FamilyCard, stage: str) -> Listing:
    from diffusion_edge.families import hub

    at = card.stages[stage]
    assert at.hub is not None
    return hub.ask(at.hub, at.revision)


def _licence(card: FamilyCard, stage: str, said: Listing) -> str:
    known = said.licence or card.stages[stage].licence or card.licence
    if not said.gated:
        return known
    return (
        f"{known}. The model is gated: accept the licence on {said.page} and log in with "
        "`hf auth login`"
    )
