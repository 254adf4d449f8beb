"""Names that a config takes from elsewhere: policies of the code, models of the family's card,
families in whose bytes packets are counted, traces that links follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diffusion_edge.config import Settings, disagreement
from diffusion_edge.errors import ConfigError, InvalidRequest
from diffusion_edge.families.card import FamilyCard, charged_shape, load_card
from diffusion_edge.places import REPOSITORY, family_folder, trace_file
from diffusion_edge.routing.policies import served
from diffusion_edge.strict import nearest
from diffusion_edge.traces import read_rates


def named_card(settings: Settings, path: Path) -> FamilyCard:
    """The card of the family that a config names. Raises ConfigError."""
    try:
        folder = family_folder(settings.family)
    except ConfigError as error:
        raise disagreement(("family",), error.message, path) from None
    return load_card(folder)


def check_names(settings: Settings, card: FamilyCard, path: Path | None = None) -> None:
    """ConfigError for a name that is not known, where a replica would fail late.

    path: of the config, for the message.
    """
    try:
        served(settings.policy)
    except InvalidRequest as error:
        raise disagreement(("policy",), error.message, path) from None
    for name, stage in settings.stages.items():
        if stage.model not in card.stages:
            known, near = ", ".join(card.stages), nearest(stage.model, card.stages)
            said = f"family {card.name!r} has no stage model {stage.model!r}; it has {known}{near}"
            raise disagreement(("stages", name, "model"), said, path)
    try:
        charged_shape(card, settings)
    except ConfigError as error:
        raise disagreement(("emulate", "packet_bytes"), error.message, path) from None
    for index, link in enumerate(settings.links):
        if link.trace is not None:
            try:
                check_trace(link.trace)
            except (ConfigError, InvalidRequest) as error:
                raise disagreement(("links", index, "trace"), error.message, path) from None


def check_trace(name: str) -> None:
    """Raises ConfigError or InvalidRequest for a file that no link can follow."""
    rates = read_rates(trace_file(name))
    if not rates.mean > 0:
        raise InvalidRequest(f"{name}: its rate is always 0; nothing would ever pass")


def located(settings: Settings) -> Settings:
    """With names that lead to the same files from wherever a replica works, on this node or, below
    the repository, on any other. Raises ConfigError."""
    links = [
        link.model_copy(update={"trace": _located(trace_file, link.trace)}) if link.trace else link
        for link in settings.links
    ]
    packets = settings.emulate
    if packets:
        folder = _located(family_folder, packets.packet_bytes)
        packets = packets.model_copy(update={"packet_bytes": folder})
    return settings.model_copy(update={"links": links, "emulate": packets})


def _located(find: Callable[[str], Path], name: str) -> str:
    found = find(name)
    return str(found.relative_to(REPOSITORY) if found.is_relative_to(REPOSITORY) else found)
