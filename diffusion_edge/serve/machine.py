"""A config that leaves out its stages: one for every model of the family, all on this machine.

Nothing is emulated: a tier is then only what the card takes a model for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from diffusion_edge.config import Settings, StageConfig, read_settings
from diffusion_edge.emulation import LinkConfig
from diffusion_edge.families.card import FamilyCard

LOOPBACK_BYTES_PER_S = 1e9
"""Stated, not measured: so little is sent that any such rate comes to nothing beside a step."""
_KEY = "diffusion-edge.io/"


@dataclass(frozen=True)
class Machine:
    """What stages share: CPUs of one node, GPUs of all."""

    cpus: int
    gpus: int = 0

    @classmethod
    def of(cls, nodes: Sequence[Mapping[str, Any]]) -> Machine:
        """From `ray.nodes()`. Of several nodes a stage may be on the one with the fewest CPUs."""
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        cpus = min((int(node.get("CPU", 0)) for node in alive), default=0)
        return cls(max(cpus, 1), int(sum(node.get("GPU", 0) for node in alive)))


def completed(settings: Settings, card: FamilyCard, machine: Machine) -> Settings:
    """With a stage for every model of the card, if the settings have none; else as they are.

    Each stage has its model's name and tier, and an equal part of the machine. Raises ConfigError
    where the rest of the settings does not agree with these stages.
    """
    if settings.stages:
        return settings
    count = len(card.stages)
    stages = {
        name: StageConfig(
            tier=model.tier,
            model=name,
            threads=max(1, machine.cpus // count),
            num_gpus=gpu_share(count, machine.gpus),
            resource=_KEY + model.tier,
            label=_KEY + model.tier,
        )
        for name, model in card.stages.items()
    }
    links = [
        LinkConfig(between=pair, bytes_per_s=LOOPBACK_BYTES_PER_S)
        for pair in combinations(stages, 2)
    ]
    whole = settings.model_copy(update={"stages": stages, "links": links})
    return read_settings(whole.model_dump())


def gpu_share(stages: int, gpus: int) -> float:
    """Equal shares that fit: a stage is on one GPU, which as few stages as can be have in common.

    Ray counts to four digits.
    """
    if not gpus:
        return 0.0
    together = -(-stages // gpus)
    return 10_000 // together / 10_000
