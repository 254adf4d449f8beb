"""The policies by name. A policy is a pure function: what it may know is in its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from diffusion_edge.config import nearest
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import earliest, elastic, fixed, in_turn
from diffusion_edge.routing.options import Options
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.steps import Policy, by_finish, by_price, free
from diffusion_edge.view import View

POLICIES: Mapping[str, Policy] = {
    "elastic": free(elastic.choose, by_price),
    "earliest": free(earliest.choose, by_finish),
    "in-turn": in_turn.choose,
    "fixed": fixed.choose,
    "cloud-only": partial(fixed.on_one_tier, "cloud"),
    "edge-only": partial(fixed.on_one_tier, "edge"),
    "device-only": partial(fixed.on_one_tier, "device"),
}


CONSIDERED: Mapping[str, Callable[[ImageRequest, View, QualityTable], Options]] = {
    "elastic": elastic.considered,
    "earliest": earliest.considered,
}
"""What those compare that choose among all plans, and the number of steps, too, where a request
leaves it out."""


def policy(name: str) -> Policy:
    """Raises InvalidRequest, which names the known ones."""
    if name not in POLICIES:
        near = nearest(name[:100], POLICIES)
        raise InvalidRequest(
            f"unknown policy {name[:100]!r}; known: {', '.join(POLICIES)}{near}", param="policy"
        )
    return POLICIES[name]
