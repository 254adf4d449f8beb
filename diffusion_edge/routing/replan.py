"""Choosing again in flight: another plan for an image on its way whose promise would be broken.

A request was promised to be in time by what was known when it came. Since then a link may have
collapsed, or a stage been slower than it said. As long as the forecast keeps the deadline all stays
as it is: another plan would be dearer, or would have been chosen before. Where it does not, the
plans are compared that go on from here: some steps more on the stage that holds the latent, one at
least, then on others. The steps that are done count for the quality as they were done.

The cheapest plan is taken that keeps the deadline for nine in ten, above the floor, with nobody
else made late. Where none does, the earliest one is, if it saves a stated share of the seconds that
are left: forecasts differ by a little all the time, and a latent should not travel for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from diffusion_edge.plan import Plan, Span
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost
from diffusion_edge.routing.forecast import ahead
from diffusion_edge.routing.onward import Onward, place_of
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.rule import Standing
from diffusion_edge.view import Choice, View

BETTER = 0.1
"""The share of the seconds left that another plan has to save where the deadline is lost."""


def again(
    request: ImageRequest, view: View, quality: QualityTable, standing: Standing
) -> Plan | None:
    """The whole plan anew of an image of a request that was promised to be in time; None if it
    stays as it is."""
    present_s = foretold_s(request, view, standing)
    if present_s is None or standing.elapsed_s + present_s <= request.deadline_s:
        return None
    left = Onward(request, view, quality, standing)
    within_s = view.within_s(request.deadline_s - standing.elapsed_s)
    found = [way for path in left.paths() for way in left.best(path, within_s)]
    best = min(found, key=lambda way: way.order(within_s), default=None)
    if best is None or best.plan.spans == standing.plan.spans:
        return None
    if best.finish_s > within_s and best.finish_s > (1.0 - BETTER) * present_s:
        return None
    late_s = standing.elapsed_s + present_s - request.deadline_s
    reason = f"the plan before would have been late by {late_s:.2f} s"
    return replace(best.plan, reason=reason).with_guidance(view.guidance)


def went(
    told: Choice, plans: Sequence[Plan], request: ImageRequest, view: View, quality: QualityTable
) -> Choice:
    """A choice whose images went by these plans in the end, one each: what they cost, and the
    quality of the worst; the very same where all went as it says."""
    if all(plan is told.plan for plan in plans):
        return told
    known = [cost.in_models(plan, view) for plan in plans]
    worst = min(known, key=lambda plan: quality.bound(plan, request.size))
    return replace(
        told,
        plan=plans[0],
        cost=fmean(cost.of_plan(plan, request, view) for plan in plans),
        quality=quality.relative(worst, request.size),
        quality_bound=quality.bound(worst, request.size),
    )


# ---------------------------------------------------------------------------- as it is planned


def standing(
    request: ImageRequest, view: View, plan: Plan, at: int, image: int, elapsed_s: float
) -> Standing | None:
    """Of an image that is on the stage of its plan's at-th span, by the last report of that; None
    where the stage does not know it. elapsed_s: since the request came."""
    span, key = plan.spans[at], (request.request_id, image)
    held = view.stages[span.stage].held if span.stage in view.stages else ()
    steps = next((one.steps for one in held if (one.request, one.image) == key), 0)
    if not 0 < steps <= span.steps:
        return None
    return Standing(plan, span.stop - steps, (), image, elapsed_s)


def foretold_s(request: ImageRequest, view: View, standing: Standing) -> float | None:
    """Seconds until the image is done by its plan, about: what comes later to a stage than was
    promised leaves it as much later. None where a stage or a link of it is not known."""
    leaves_s, before = 0.0, standing.left[0]
    for k, span in enumerate(standing.left):
        place = place_of(request, view, standing, k)
        if place is None:
            return None
        status, age_s = view.stages[span.stage], view.age_s.get(span.stage, 0.0)
        later_s = 0.0
        if k:
            hop_s = _hop_s(before.stage, span, view)
            if hop_s is None:
                return None
            later_s = max(leaves_s + hop_s - (status.held[place].arrives_s - age_s), 0.0)
        leaves_s = max(ahead(status)[place] - age_s, 0.0) + later_s
        before = span
    return leaves_s


def _hop_s(source: str, span: Span, view: View) -> float | None:
    if source != span.stage and (source, span.stage) not in view.links:
        return None
    return float(cost.hop_s(source, span.stage, np.array([span.start]), view)[0])
