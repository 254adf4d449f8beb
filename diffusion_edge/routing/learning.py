"""What policies learn from what became of requests, for whoever carries these out."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.policies import rule
from diffusion_edge.routing.reward import cloud_only, reward
from diffusion_edge.routing.rule import Outcome, Rule
from diffusion_edge.view import Choice, View

Learned = Mapping[str, Rule]
"""Policies by name, as they are after what they have learned; those that have not are not in it."""

NOTHING: Learned = MappingProxyType({})


def now(name: str, learned: Learned) -> Rule:
    """Raises InvalidRequest for an unknown policy."""
    return learned.get(name) or rule(name)


def learn(learned: Learned, outcome: Outcome) -> Learned:
    """With what the policy of a request learns from what became of it."""
    name = outcome.request.policy
    observe = now(name, learned).observe
    return learned if observe is None else {**learned, name: observe(outcome)}


def outcome(
    request: ImageRequest,
    view: View,
    choice: Choice,
    came_s: float,
    seconds: float,
    score: float | None = None,
) -> Outcome:
    """Of a request that was begun; as in `Outcome`. The floor is held against the plan's bound."""
    held = seconds <= request.deadline_s and choice.quality_bound >= request.quality_floor
    earned = reward(held, choice.cost, cloud_only(request, view))
    return Outcome(request, view, choice, came_s, seconds, earned, score)
