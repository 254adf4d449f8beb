"""Names that a config takes from elsewhere: policies of the code, models of the family's card,
families in whose bytes packets are counted."""

from __future__ import annotations

from pathlib import Path

from diffusion_edge.config import Settings, disagreement, nearest
from diffusion_edge.errors import ConfigError, InvalidRequest
from diffusion_edge.families.card import FamilyCard, charged_shape
from diffusion_edge.routing.policies import policy


def check_names(settings: Settings, card: FamilyCard, path: Path | None = None) -> None:
    """ConfigError for a name that is not known, where a replica would fail late.

    path: of the config, for the message.
    """
    try:
        policy(settings.policy)
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
