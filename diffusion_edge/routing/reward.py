"""What a request is worth when it is done: the one figure by which policies are compared."""

from __future__ import annotations

from diffusion_edge.plan import TIERS, Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost
from diffusion_edge.view import View

HALF = 0.5
"""What the cost of cloud-only takes off the reward of a request that had that cost."""


def reward(held: bool, paid: float, alone: float) -> float:
    """1 if deadline and floor were held, less half its cost over that of all steps in the cloud; a
    refused request paid nothing and held nothing. 0 for the cost where the cloud costs nothing."""
    return float(held) - (HALF * paid / alone if alone else 0.0)


def cloud_only(request: ImageRequest, view: View) -> float:
    """The least cost of all steps on one stage of the highest tier."""
    highest = max((status.tier for status in view.stages.values()), key=TIERS.index)
    names = [name for name, status in view.stages.items() if status.tier == highest]
    plans = [Plan.of(((name, request.steps),)) for name in names]
    return min(cost.of_plan(plan, request, view) for plan in plans)
