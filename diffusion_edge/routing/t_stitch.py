"""The policy `t-stitch`: the small model makes the first 40 % of the steps, the large one the rest.

T-Stitch (arXiv 2402.14167) lets a small model begin and a large one of the same latent space
finish, at a hand-off that is the same for all requests; there 40 % of DiT-XL's steps were made by
a DiT-S without loss. Changed: the two models run on two tiers, so a latent travels; of several
stages of a tier, those are taken with which the plan is done first; and the number of steps, where
a request leaves it open, is the cheapest one that reaches the floor in time. Not changed: neither
load nor links move the hand-off, and the floor does not bind it.
"""

from __future__ import annotations

from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.fixed import first_done
from diffusion_edge.routing.pairs import split, two, whole
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.view import Choice, View

SHARE = 0.4
"""Of the steps, on the small model (the paper's figure)."""


def choose(request: ImageRequest, view: View, quality: QualityTable) -> Choice:
    """Where no link leads from small to large, all steps on the large one. Raises NoPlan and
    QueueFull."""
    pair = two(request, view)
    plans = split(pair.small, pair.large, SHARE, request, view) or whole(pair.large, request)
    reason = f"the first {SHARE:.0%} of the steps on the small model"
    return first_done(plans, reason, request, view, quality)
