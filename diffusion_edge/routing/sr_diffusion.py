"""The policy `sr-diffusion`: the large model begins, and the small one takes over when the output
flattens.

SRDiffusion (arXiv 2505.19151) watches how much the model's output changes from step to step, as

    d = tanh(mean of |o_t - o_before| / mean of |o_before|)

and switches when 0 < d_before - d < 0.01, within a range of steps. The rule looks at the picture
alone: load and links do not matter to it. Changed: the two models run on two tiers, so a latent
travels; the range is stated here (EARLIEST, LATEST), as the papers' models are others; and the
number of steps, where a request leaves it open, is the cheapest one that reaches the floor in time
if the switch comes last. The plan of the request has that last switch; `revise` moves it forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import tanh

from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.fixed import first_done
from diffusion_edge.routing.pairs import handoff, split, two, whole
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.rule import Standing
from diffusion_edge.view import Choice, View

FLAT = 0.01
"""What d falls by, at most, from one step to the next where the output is flat (the paper's)."""
EARLIEST, LATEST = 0.2, 0.6
"""Shares of the steps between which it switches."""


def choose(request: ImageRequest, view: View, quality: QualityTable) -> Choice:
    """Where no link leads from large to small, all steps on the large one. Raises NoPlan and
    QueueFull."""
    pair = two(request, view)
    plans = split(pair.large, pair.small, LATEST, request, view) or whole(pair.large, request)
    reason = f"the large model until its output is flat, for {LATEST:.0%} of the steps at most"
    return first_done(plans, reason, request, view, quality)


def revise(_: ImageRequest, view: View, standing: Standing) -> Plan | None:
    """The switch at once, if the output has just become flat."""
    plan, at = standing.plan, standing.position
    if len(plan.spans) != 2 or not handoff(EARLIEST, plan.steps) <= at < plan.spans[1].start:
        return None
    if not is_flat(standing.changes):
        return None
    large, small = plan.spans
    spans = replace(large, stop=at), replace(small, start=at)
    revised = Plan(spans, plan.codecs, f"the output of the large model is flat after step {at - 1}")
    return revised.with_codecs(view.codecs)


def is_flat(changes: Sequence[float]) -> bool:
    """changes: as in `Standing`."""
    if len(changes) < 2:
        return False
    before, now = (tanh(change) for change in changes[-2:])
    return 0 < before - now < FLAT
