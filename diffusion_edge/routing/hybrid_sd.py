"""The policy `hybrid-sd`: the large model makes the first 40 % of the steps, the small one the
rest.

Hybrid SD (arXiv 2408.06646) begins on a large model in the cloud and ends on a pruned one at the
user's, at a constant hand-off, such as after 10 of 25 steps. Changed: a packet with codec and
solver state travels, where the paper's code runs both models in one process; of several stages of a
tier, those are taken with which the plan is done first; and the number of steps, where a request
leaves it open, is the cheapest one that reaches the floor in time. Not changed: neither load nor
links move the hand-off, and the floor does not bind it.
"""

from __future__ import annotations

from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.fixed import first_done
from diffusion_edge.routing.pairs import split, two, whole
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.view import Choice, View

SHARE = 0.4
"""Of the steps, on the large model (10 of 25 in the paper)."""


def choose(request: ImageRequest, view: View, quality: QualityTable) -> Choice:
    """Where no link leads from large to small, all steps on the large one. Raises NoPlan and
    QueueFull."""
    pair = two(request, view)
    plans = split(pair.large, pair.small, SHARE, request, view) or whole(pair.large, request)
    reason = f"the first {SHARE:.0%} of the steps on the large model"
    return first_done(plans, reason, request, view, quality)
