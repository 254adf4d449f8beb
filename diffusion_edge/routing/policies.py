"""The policies by name. A policy is made of pure functions (`rule`): what they may know is in their
arguments."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.routing import (
    cascade,
    earliest,
    elastic,
    fixed,
    hybrid_sd,
    in_turn,
    linucb,
    sr_diffusion,
    t_stitch,
)
from diffusion_edge.routing.rule import Rule
from diffusion_edge.routing.steps import Policy, by_finish, by_floor, by_price, free
from diffusion_edge.strict import nearest

RULES: Mapping[str, Rule] = {
    "elastic": Rule(
        free(elastic.choose, by_price), elastic.considered, elastic.served_late, frees_steps=True
    ),
    "earliest": Rule(free(earliest.choose, by_finish), earliest.considered, frees_steps=True),
    "in-turn": Rule(in_turn.choose),
    "fixed": Rule(fixed.choose),
    "cloud-only": Rule(partial(fixed.on_one_tier, "cloud")),
    "edge-only": Rule(partial(fixed.on_one_tier, "edge")),
    "device-only": Rule(partial(fixed.on_one_tier, "device")),
    "t-stitch": Rule(free(t_stitch.choose, by_floor), frees_steps=True),
    "hybrid-sd": Rule(free(hybrid_sd.choose, by_floor), frees_steps=True),
    "sr-diffusion": Rule(
        free(sr_diffusion.choose, by_floor), frees_steps=True, revise=sr_diffusion.revise
    ),
    "cascade": cascade.rule(),
    "linucb": linucb.rule(),
}


SERVED = tuple(name for name, each in RULES.items() if each.chooses_once)
"""Those that a server can follow."""


def rule(name: str) -> Rule:
    """Raises InvalidRequest, which names the known ones."""
    if name not in RULES:
        near = nearest(name[:100], RULES)
        raise InvalidRequest(
            f"unknown policy {name[:100]!r}; known: {', '.join(RULES)}{near}", param="policy"
        )
    return RULES[name]


def served(name: str) -> Rule:
    """A rule that a server can follow. Raises InvalidRequest for one that chooses again later."""
    found = rule(name)
    if not found.chooses_once:
        lacks = (
            "stages do not report by how much their model's output changes from step to step"
            if found.revise
            else "a server does not score its pictures by the family's metric"
        )
        raise InvalidRequest(
            f"policy {name!r} chooses again by what no server knows: {lacks}; a simulation replays "
            f"it; served: {', '.join(SERVED)}",
            param="policy",
        )
    return found


def policy(name: str) -> Policy:
    """How it chooses. Raises InvalidRequest, which names the known ones."""
    return rule(name).choose
